"""The server under soak: ours, in eager mode, with a second count beside the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import METRICS_PATH, READY_PATH
from leanmoe_bench.engines.pair import dotted_name
from leanmoe_bench.resident import resident_bytes
from leanmoe_bench.soak.recounter import Recounter


class SoakServer(LocalServer):
    """A live server on loopback."""

    def rpc(self, method: str) -> Any:
        """A worker method through vLLM's development route; the first worker's answer."""
        return self.post("/collective_rpc", {"method": method})["results"][0]

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
    ]
    with SoakServer("soak", arguments, log, settings={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        server.wait(READY_PATH)
        yield server
