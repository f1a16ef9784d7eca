"""The server that is pressed: ours, or stock vLLM's beside it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import HEALTH_PATH, METRICS_PATH, READY_PATH
from leanmoe_bench.resident import resident_bytes
from leanmoe_server.keys.key_source import ADMIN_KEY_VARIABLE

ADMIN_KEY = secrets.token_urlsafe()
MODEL = "pressed"
WAITING = 64
_STOCK = "vllm.entrypoints.launchers.api_server.entry"


class PressedServer(LocalServer):
    """A live server on loopback, read from outside."""

    def sampled(self, name: str, label: str = "") -> float:
        """The sum of a metric's samples whose labels hold ``label``."""
        lines = self.get(METRICS_PATH, timeout=120.0).splitlines()
        held = [one for one in lines if one.startswith((f"{name}{{", f"{name} ")) and label in one]
        return sum(float(one.rsplit(" ", 1)[1]) for one in held)

    def resident_bytes(self) -> tuple[int, int]:
        """Of all its processes, and of the first, which speaks HTTP."""
        leader = self.group.process.pid
        return resident_bytes(leader), int(psutil.Process(leader).memory_info().rss)

    def unfinished(self) -> float:
        """Requests that run or wait."""
        return sum(self.sampled(f"vllm:num_requests_{how}") for how in ("running", "waiting"))


@contextmanager
def pressed_server(
    model: Path, log: Path, seats: int, *extra: str, stock: bool = False
) -> Iterator[PressedServer]:
    """Started and ready; ended whatever happens."""
    flags = [
        *("--served-model-name", MODEL, "--max-model-len", "512", "--enforce-eager"),
        *("--max-num-seqs", str(seats), "--kv-cache-memory-bytes", "300000000"),
    ]
    if stock:
        arguments = ["-m", _STOCK, "--model", str(model), "--max-num-queued-reqs", str(WAITING)]
    else:
        arguments = ["-m", "leanmoe.cli", "serve", str(model), "--max-waiting", str(WAITING)]
    settings = {ADMIN_KEY_VARIABLE: ADMIN_KEY}
    with PressedServer(
        "pressed", [*arguments, *flags, *extra], log, plugin=not stock, settings=settings
    ) as server:
        server.wait(HEALTH_PATH if stock else READY_PATH)
        yield server
