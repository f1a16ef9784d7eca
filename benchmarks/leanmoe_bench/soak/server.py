"""The server under soak: ours, in eager mode, with a second count beside the first."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import METRICS_PATH, READY_PATH
from leanmoe_bench.engines.pair import dotted_name
from leanmoe_bench.resident import resident_bytes
from leanmoe_bench.soak.recounter import Recounter
from leanmoe_bench.soak.worker_route import FOLDER, WorkerRoute
from leanmoe_server.keys.key_source import ADMIN_KEY_VARIABLE

ADMIN_KEY = secrets.token_urlsafe()


class SoakServer(LocalServer):
    """A live server on loopback."""

    def rpc(self, method: str) -> Any:
        """What the first worker answers to a method of the recounter."""
        return self.post(f"{FOLDER}{method}", {})["results"][0]

    def counters(self) -> dict[str, dict[int, float]]:
        """LeanMoE's counters by layer."""
        found: dict[str, dict[int, float]] = {}
        for line in self.get(METRICS_PATH, timeout=120.0).splitlines():
            if line.startswith("leanmoe_") and '_total{layer="' in line:
                name, rest = line.split("{", 1)
                layer, value = rest.removeprefix('layer="').split('"} ')
                found.setdefault(name, {})[int(layer)] = float(value)
        return found

    def resident_bytes(self) -> int:
        """Resident memory of the server and all it started."""
        return resident_bytes(self.group.process.pid)


@contextmanager
def soak_server(model: Path, log: Path, concurrency: int) -> Iterator[SoakServer]:
    """Started, ready, listened to; ended whatever happens."""
    arguments = [
        *("-m", "leanmoe.cli", "serve", str(model), "--served-model-name", "soak"),
        *("--max-model-len", "512", "--max-num-seqs", str(concurrency), "--enforce-eager"),
        *("--kv-cache-memory-bytes", "300000000"),
        *("--worker-extension-cls", dotted_name(Recounter)),
        *("--middleware", dotted_name(WorkerRoute)),
    ]
    settings = {ADMIN_KEY_VARIABLE: ADMIN_KEY}
    with SoakServer("soak", arguments, log, settings=settings) as server:
        server.wait(READY_PATH)
        yield server
