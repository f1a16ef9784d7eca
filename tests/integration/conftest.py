"""The tiny model and one live server on it, each made once per test session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.live_server import LiveServer, live_server
from tests.tiny import write_tiny_curve, write_tiny_mixtral


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a manifest and a made-up quality curve."""
    return write_tiny_curve(write_tiny_mixtral(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A ready server without keys at level 0."""
    with live_server(tiny_model, tmp_path_factory.mktemp("server") / "server.log") as running:
        assert running.get("/ready").status_code == 200, running.log.read_text()[-4000:]
        yield running


@pytest.fixture
def exact_server(server: LiveServer) -> Iterator[LiveServer]:
    """The live server at level 0, before the test and after it."""
    assert server.put_level({"level": 0}).status_code == 200
    yield server
    assert server.put_level({"level": 0}).status_code == 200
