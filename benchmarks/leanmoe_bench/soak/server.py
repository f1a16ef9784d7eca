"""The server under soak: ours, in eager mode, with a second count beside the first."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe.process.group import ProcessGroup
from leanmoe.process.ports import free_port
from leanmoe.wire import METRICS_PATH, READY_PATH
from leanmoe_bench.engines.pair import dotted_name
from leanmoe_bench.soak.recounter import Recounter

_START_SECONDS = 420.0


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


class SoakServer:
    """A live server on loopback."""

    def __init__(self, url: str, group: ProcessGroup, log: Path) -> None:
        self.url, self.group, self._log = url, group, log
        self._client = httpx.Client(base_url=url, timeout=120.0, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def rpc(self, method: str) -> Any:
        """A worker method through vLLM's development route; the first worker's answer."""
        answer = self._client.post("/collective_rpc", json={"method": method})
        answer.raise_for_status()
        return answer.json()["results"][0]

    def counters(self) -> dict[str, dict[int, float]]:
        """LeanMoE's counters by layer."""
        found: dict[str, dict[int, float]] = {}
        for line in self.get(METRICS_PATH).text.splitlines():
            if line.startswith("leanmoe_") and '_total{layer="' in line:
                name, rest = line.split("{", 1)
                layer, value = rest.removeprefix('layer="').split('"} ')
                found.setdefault(name, {})[int(layer)] = float(value)
        return found

    def resident_bytes(self) -> int:
        """Resident memory of the server and all it started."""
        leader = psutil.Process(self.group.process.pid)
        tree = [leader, *leader.children(recursive=True)]
        return sum(map(_resident, tree))

    def wait(self) -> None:
        """Until ready."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.group.process.poll() is None:
            try:
                if self.get(READY_PATH).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise LeanMoEError(f"the server is not ready:\n{tail}")


@contextmanager
def soak_server(model: Path, log: Path, concurrency: int) -> Iterator[SoakServer]:
    """Started, ready, listened to; ended whatever happens."""
    port = free_port()
    command = [
        *(sys.executable, "-P", "-m", "leanmoe.cli", "serve", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "soak"),
        *("--max-model-len", "512", "--max-num-seqs", str(concurrency), "--enforce-eager"),
        *("--kv-cache-memory-bytes", "300000000", "--worker-extension-cls", dotted_name(Recounter)),
    ]
    environment = {**engine_environment(base=os.environ), "VLLM_SERVER_DEV_MODE": "1"}
    with log.open("wb") as out:
        group = ProcessGroup(command, env=environment, output=out)
    server = SoakServer(f"http://127.0.0.1:{port}", group, log)
    try:
        server.wait()
        yield server
    finally:
        group.process.terminate()
        group.end(grace_seconds=60)
