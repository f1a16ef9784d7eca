"""A server of ours: waited for until ready, asked, ended with the block, its last words told."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from subprocess import Popen

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe.process import local_server
from leanmoe.process.group import last_lines
from leanmoe.process.local_server import LocalServer
from leanmoe.process.patience import Patience
from leanmoe.process.processor_time import session_seconds
from leanmoe_server.local import serve

ECHO = """
import argparse
from http.server import BaseHTTPRequestHandler, HTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
place = parser.parse_args()
asked = []


class Echo(BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        asked.append(self.path)
        ready = len(asked) > 1
        self.answer(200 if ready else 503, str(len(asked)).encode())

    def do_POST(self):
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))


HTTPServer((place.host, place.port), Echo).serve_forever()
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "echo.py"
    path.write_text(ECHO)
    return path


def test_it_is_ready_when_it_says_so_and_ends_with_the_block(script, tmp_path):
    with LocalServer("echo", [str(script)], tmp_path / "log") as server:
        server.wait("/ready")
        assert server.get("/ready") == "3"  # refused once, then ready, then this
        assert server.post("/echo", {"a": [1]}) == {"a": [1]}
        process = server.group.process
        assert process.poll() is None
    assert process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_one_that_ends_while_starting_says_its_last_words(tmp_path):
    (tmp_path / "gone.py").write_text("raise SystemExit('no such model')")
    log = tmp_path / "log"
    with (
        pytest.raises(LeanMoEError, match="the lean server ended while starting:\nno such model"),
        LocalServer("lean", [str(tmp_path / "gone.py")], log) as server,
    ):
        server.wait("/ready")


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(40)))
    assert last_lines(log, 2) == "line 38\nline 39"


def test_one_that_never_gets_ready_is_given_up_for_what_it_does(script, tmp_path, monkeypatch):
    monkeypatch.setattr(local_server, "Patience", partial(Patience, idle_seconds=0.0))
    with (
        LocalServer("echo", [str(script)], tmp_path / "log") as server,
        pytest.raises(LeanMoEError, match="echo server does not come up: it has computed nothing"),
    ):
        server.wait("/ready")


def test_patience_lasts_while_a_session_computes():
    """What a child computes counts; a process that sleeps does not."""
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with Popen([sys.executable, "-c", busy], start_new_session=True) as process:
        try:
            patience = Patience(process.pid, idle_seconds=60.0, most_cpu_seconds=2.0)
            while patience.lost() is None:
                assert process.poll() is None
            assert "it has computed for" in str(patience.lost())
            assert session_seconds(process.pid).ran > 2.0
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    with Popen(["sleep", "60"], start_new_session=True) as process:
        assert Patience(process.pid, idle_seconds=-1.0).lost() == "it has computed nothing for -1 s"
        process.kill()


@pytest.mark.vllm
def test_a_server_from_python_says_why_it_did_not_start(tmp_path):
    with (
        pytest.raises(LeanMoEError, match=r"the lean server ended while starting:\n.*no-model"),
        serve(tmp_path / "no-model", log=tmp_path / "log"),
    ):
        pytest.fail("nothing to serve")
