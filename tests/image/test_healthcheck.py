"""The health check against servers that really listen."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.image.conftest import SCRIPTS


@contextmanager
def answering(status):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check(url, **more):
    environment = {"LEANMOE_HEALTH_URL": url, "PATH": os.environ["PATH"], **more}
    return subprocess.run(
        [sys.executable, "-I", SCRIPTS / "healthcheck"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_200_is_healthy_and_quiet():
    with answering(200) as url:
        done = check(url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("status", [404, 500, 503])
def test_any_other_answer_is_not(status):
    with answering(status) as url:
        done = check(url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"healthcheck: {url}: ") and str(status) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_nobody_listens_on_is_not():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        done = check(f"http://127.0.0.1:{taken.getsockname()[1]}/health")
    assert done.returncode == 1 and "refused" in done.stderr


def test_a_server_that_never_answers_is_not():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/health"
        done = check(url, LEANMOE_HEALTH_SECONDS="0.2")
    assert done.returncode == 1 and "timed out" in done.stderr


def test_a_proxy_in_the_environment_is_not_asked():
    with answering(200) as url:
        assert check(url, http_proxy="http://127.0.0.1:1").returncode == 0


def test_an_address_that_is_none_is_one_line_too():
    done = check("nonsense")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
