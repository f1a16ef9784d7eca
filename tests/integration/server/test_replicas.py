"""Three replicas behind nginx, as a release has them, and one level for all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from leanmoe import cli
from leanmoe.process.ports import free_port
from tests.forked import Forked
from tests.integration.live_server import ADMIN_KEY, LiveServer, live_server, wait_for
from tests.page_tools import tool

REQUESTS = 60
_CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream replicas {{ {servers} keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://replicas; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(replicas: list[LiveServer], folder: Path) -> Iterator[str]:
    """The address of an nginx in front of ``replicas``, with connections kept to each."""
    program = tool("nginx", "nginx")
    port, servers = free_port(), [f"server {one.url.removeprefix('http://')};" for one in replicas]
    named = {"folder": folder, "port": port, "servers": " ".join(servers)}
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(**named))
    with subprocess.Popen([program, "-c", folder / "nginx.conf", "-p", folder]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            assert wait_for(lambda: answers(url), bool, seconds=20)
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def replicas(
    tiny_model: Path, forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[LiveServer]]:
    folder = tmp_path_factory.mktemp("replicas")
    # Workers of several servers would be bound to the same core.
    given = {"environment": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}}
    with ExitStack() as stack:
        yield [
            stack.enter_context(live_server(tiny_model, folder / f"{i}.log", popen=forked, **given))
            for i in range(3)
        ]


@pytest.fixture(autouse=True)
def _admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANMOE_ADMIN_KEY", ADMIN_KEY)


def fleet(
    capsys: pytest.CaptureFixture[str], replicas: list[LiveServer], *words: str
) -> tuple[int, list[dict[str, object]]]:
    """Exit code and the rows of the report."""
    named = [part for one in replicas for part in ("--replica", one.url)]
    code = cli.main(["fleet", *words, *named, "--json"])
    return code, json.loads(capsys.readouterr().out)["members"]


def levels_stated(url: str, model: str) -> list[tuple[int, str | None]]:
    """Status and stated level of completions, each on a connection of its own, eight at once."""
    found: list[tuple[int, str | None]] = []

    def client(count: int) -> None:
        for _ in range(count):
            body = {"model": model, "prompt": "the water", "max_tokens": 3}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            found.append((answer.status_code, answer.headers.get("x-leanmoe-skip-level")))

    threads = [threading.Thread(target=client, args=(REQUESTS // 6,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def served(replica: LiveServer) -> float:
    return replica.metrics()["vllm:e2e_request_latency_seconds_count", ""]


def test_every_answer_through_the_proxy_has_the_level_of_all(
    replicas: list[LiveServer], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, rows = fleet(capsys, replicas, "set", "--level", "0.5")
    assert code == 0 and [row["outcome"] for row in rows] == ["changed"] * 3
    before = [served(one) for one in replicas]
    with nginx(replicas, tmp_path) as url:
        found = levels_stated(url, replicas[0].model)
    assert found == [(200, "0.5")] * REQUESTS
    assert all(served(one) > then for one, then in zip(replicas, before, strict=True))


def test_a_replica_killed_midway_is_reported_and_its_successor_told(
    replicas: list[LiveServer],
    forked: type[Forked],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The last test: the second replica is gone after it."""
    assert replicas[0].put_level({"level": 1}).status_code == 200  # so far came a stopped command
    os.kill(replicas[1].process.pid, signal.SIGKILL)
    replicas[1].process.wait(20)
    code, rows = fleet(capsys, replicas, "set", "--level", "1")
    assert code == 1
    assert [row["outcome"] for row in rows] == ["unchanged", "failed", "changed"]
    code, rows = fleet(capsys, [replicas[0], replicas[2]], "show")
    assert code == 0 and {row["level"] for row in rows} == {1.0}
    model = Path(replicas[0].model)
    given = {"environment": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}}
    with live_server(model, tmp_path / "log", popen=forked, **given) as successor:
        release = [replicas[0], successor, replicas[2]]
        assert fleet(capsys, release, "show")[0] == 1
        code, rows = fleet(capsys, release, "set", "--level", "1")
        assert code == 0 and [row["outcome"] for row in rows] == [
            "unchanged",
            "changed",
            "unchanged",
        ]
        assert (
            successor.get("/v1/expert_skipping", {"X-LeanMoE-Admin-Key": ADMIN_KEY}).json()["level"]
            == 1.0
        )
