"""Workers and engines that stop or die, on servers whose processes are looked at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server, wait_for


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def engine_and_worker(server: LiveServer) -> tuple[psutil.Process, psutil.Process]:
    """The process of the engine and the worker under it."""
    own = psutil.Process(server.process.pid)
    [(engine, worker)] = [
        (child, below)
        for child in own.children()
        for below in child.children()
        if "resource_tracker" not in " ".join(below.cmdline())
    ]
    return engine, worker


def becomes_ready(server: LiveServer, status: int) -> str:
    """What ``/ready`` says once it has this status."""
    got = wait_for(lambda: server.get("/ready"), lambda got: got.status_code == status, seconds=60)
    assert got.status_code == status, got.text
    return got.text


def test_a_process_that_hangs_makes_the_server_unready_until_it_goes_on(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    with live_server(tiny_model, tmp_path / "log", "--poll-seconds", "1", popen=forked) as server:
        for process in engine_and_worker(server):
            becomes_ready(server, 200)
            with stopped(process):
                said = becomes_ready(server, 503)
                assert "have not answered for" in said and "is stopped" in said
                assert server.get("/health").status_code == 200
                refused = server.put_level({"level": 1})
                assert refused.status_code == 503 and "was not changed" in refused.text
        becomes_ready(server, 200)
        assert server.get("/v1/expert_skipping").json()["level"] == 0
        assert server.answer(tokens=2)
