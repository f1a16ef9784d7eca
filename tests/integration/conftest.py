"""The tiny model, one live server on it and what starts engines, each made once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from leanmoe.process.group import ProcessGroup
from leanmoe_bench.engines import pair
from tests.forked import Forked, forking
from tests.integration.live_server import LiveServer, live_server
from tests.tiny import write_tiny_curve, write_tiny_mixtral


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a manifest and a made-up quality curve."""
    return write_tiny_curve(write_tiny_mixtral(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def forked() -> Iterator[type[Forked]]:
    """``subprocess.Popen`` for engines and servers that need no Python of their own."""
    with forking() as popen:
        yield popen


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[[], type[Forked]]]:
    """The same for engines that interpret kernels, which Triton wants to know when imported."""
    with ExitStack() as stack:
        yield cache(lambda: stack.enter_context(forking(TRITON_INTERPRET="1")))


@pytest.fixture(scope="package")
def forked_arms(forked: type[Forked], interpreted: Callable[[], type[Forked]]) -> Iterator[None]:
    """The engines of ``RemoteArm``s fork off one process: imports take most of a start."""

    class ForkedGroup(ProcessGroup):
        def __init__(self, command, *, env, output, **options) -> None:
            start = interpreted() if "TRITON_INTERPRET" in env else forked
            self.process = start(
                command, env=env, stdout=output, stderr=output, start_new_session=True, **options
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "ProcessGroup", ForkedGroup)
        yield


@pytest.fixture(scope="session")
def server(
    tiny_model: Path, forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A ready server without keys at level 0."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with live_server(tiny_model, log, popen=forked) as running:
        assert running.get("/ready").status_code == 200, running.log.read_text()[-4000:]
        yield running


@pytest.fixture
def exact_server(server: LiveServer) -> Iterator[LiveServer]:
    """The live server at level 0, before the test and after it."""
    assert server.put_level({"level": 0}).status_code == 200
    yield server
    assert server.put_level({"level": 0}).status_code == 200
