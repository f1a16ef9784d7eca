"""``leanmoe serve`` from Python: a server on loopback, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import READY_PATH


@contextmanager
def serve(model: Path | str, *flags: str, log: Path | str) -> Iterator[LocalServer]:
    """Start ``leanmoe serve MODEL FLAGS`` on a free port, wait until it is ready, end it after.

    ``log`` takes what the server prints; ``server.url`` is where a client finds it. Raises
    ``LeanMoEError`` with the log's last lines where it does not come up.
    """
    arguments = ["-m", "leanmoe.cli", "serve", str(model), *flags]
    with LocalServer("lean", arguments, Path(log)) as server:
        server.wait(READY_PATH)
        yield server
