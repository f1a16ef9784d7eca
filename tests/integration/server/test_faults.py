"""Workers and engines that stop or die, on servers whose processes are looked at."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leanmoe.process.environment import engine_environment
from leanmoe.process.ports import free_port
from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server, serve_command, wait_for


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
        (child, below) for child in pythons_under(own) for below in pythons_under(child)
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
        # Nor does what never arrives delay the end.
        with half_a_request(server) as connection:
            server.process.terminate()
            assert b" 503 " in connection.recv(1000)
            assert server.process.wait(60) == 0
        said = server.log.read_text()
    assert "stopping: 0 requests in flight" in said and "Traceback" not in said


def test_a_client_that_leaves_ends_what_was_made_for_it(
    server: LiveServer, record_property: Callable[[str, object], None]
) -> None:
    """Most of the answer was still to come; how long it took is told, and asserted in tokens."""

    def sampled(name: str) -> float:
        families = text_string_to_metric_families(server.get("/metrics").text)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    answers, tokens = 8, 1000
    body = {"model": server.model, "prompt": "water", "max_tokens": tokens, "ignore_eos": True}
    body["n"] = answers
    for streamed in (True, False):
        before = sampled("vllm:generation_tokens_total")
        request = {**body, "stream": streamed}
        with httpx.Client(base_url=server.url) as client:
            if streamed:
                with client.stream("POST", "/v1/completions", json=request) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=request, timeout=0.2)
        left = time.monotonic()
        running = wait_for(
            lambda: sampled("vllm:num_requests_running"), lambda count: count == 0, seconds=30
        )
        assert running == 0
        record_property(f"seconds_to_end_{streamed}", round(time.monotonic() - left, 2))
        assert sampled("vllm:generation_tokens_total") - before < answers * tokens / 2


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def half_a_request(server: LiveServer) -> socket.socket:
    """A connection on which the rest of a body never comes."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    connection.sendall(f'{head}content-length: 100000\r\n\r\n{{"model":'.encode())
    return connection


@pytest.mark.parametrize("which", [0, 1], ids=["engine", "worker"])
def test_a_process_that_dies_ends_the_server_whatever_its_clients_hold_open(
    tiny_model: Path, forked: type[Forked], tmp_path: Path, which: int
) -> None:
    with live_server(tiny_model, tmp_path / "log", popen=forked) as server:
        family = server.processes()
        with half_a_request(server):
            engine_and_worker(server)[which].kill()
            assert server.process.wait(60) == 1
        assert wait_for(lambda: alive(family), lambda left: not left, seconds=30) == []
        said = server.log.read_text()
    assert "vLLM's engine is dead: the server ends" in said
    assert "leanmoe serve: vLLM's engine stopped by itself" in said


def test_an_engine_and_its_worker_end_with_a_server_that_is_killed(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    with live_server(tiny_model, tmp_path / "log", popen=forked) as server:
        family = server.processes()
        assert len(family) >= 3
        server.process.kill()
        assert wait_for(lambda: alive(family), lambda left: not left, seconds=30) == []


@pytest.mark.parametrize("below", [1, 2], ids=["engine", "worker"])
def test_a_stop_while_the_model_loads_leaves_nobody(
    tiny_model: Path, forked: type[Forked], tmp_path: Path, below: int
) -> None:
    """Told as soon as the engine's process, or the worker's, is there."""
    with starting(tiny_model, tmp_path / "log", forked) as process:
        wait_for(lambda: depth(process), lambda found: found >= below, seconds=60)
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        assert depth(process) >= below
        process.terminate()
        assert process.wait(60) == 130
        assert wait_for(lambda: alive(family), lambda left: not left, seconds=30) == []
    said = (tmp_path / "log").read_text()
    assert "leanmoe serve: interrupted" in said and "did not end within" not in said


def test_a_stop_during_imports_is_an_interrupt(tiny_model: Path, tmp_path: Path) -> None:
    """Started as a user does: what is imported, and when, is the command's own."""
    with starting(tiny_model, tmp_path / "log", subprocess.Popen) as process:
        own = psutil.Process(process.pid)
        maps = wait_for(
            lambda: {Path(one.path).name for one in own.memory_maps()},
            lambda names: "libtorch_cpu.so" in names,
            seconds=60,
        )
        assert "libtorch_cpu.so" in maps
        process.terminate()
        assert process.wait(60) == 130
    assert "interrupted" in (tmp_path / "log").read_text()


def depth(process: subprocess.Popen[bytes]) -> int:
    """How many generations of Pythons stand below a process."""
    own = psutil.Process(process.pid)
    level, found = [own], -1
    while level:
        found += 1
        level = [child for one in level for child in pythons_under(one)]
    return found


def pythons_under(process: psutil.Process) -> list[psutil.Process]:
    """Its children that compute something; none of one that ended meanwhile, as short ones do."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in process.children():
            with suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    found.append(child)
    return found


@contextmanager
def starting(
    model: Path, log: Path, popen: type[subprocess.Popen[bytes]]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that nobody waited for, killed at the end if it is still there."""
    command = serve_command(model, "--host", "127.0.0.1", "--port", str(free_port()))
    environment = None if popen is subprocess.Popen else engine_environment()
    with log.open("wb") as out:
        process = popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
