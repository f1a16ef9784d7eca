"""The demo's servers: a question, a metric and the memory of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import HEALTH_PATH, METRICS_PATH, READY_PATH

MODEL_NAME = "reference"


class Server(LocalServer):
    """A live server on loopback. ``name`` is stock or lean."""

    def chat(self, question: str, max_tokens: int = 60) -> str:
        """One greedy answer."""
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        answer = self.post("/v1/chat/completions", body)
        return str(answer["choices"][0]["message"]["content"]).strip()

    def metric(self, name: str) -> float:
        """Sum of a Prometheus series over its labels."""
        lines = self.get(METRICS_PATH).splitlines()
        series = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in series)

    def worker_resident_bytes(self) -> int:
        """Resident memory of the process that holds the weights: the largest of the tree."""
        leader = psutil.Process(self.group.process.pid)
        tree = [leader, *leader.children(recursive=True)]
        return max(process.memory_info().rss for process in tree)


# The engine flags both servers get.
_FLAGS = (
    *("--served-model-name", MODEL_NAME),
    *("--max-model-len", "1024", "--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", "500000000"),
)


@contextmanager
def stock_server(model: Path, logs: Path) -> Iterator[Server]:
    """vLLM's own API server on ``model``, without the plugin."""
    module = "vllm.entrypoints.launchers.api_server.entry"
    with _started("stock", ["-m", module, "--model", str(model)], logs, plugin=False) as server:
        server.wait(HEALTH_PATH)
        yield server


@contextmanager
def lean_server(model: Path, logs: Path, *options: str) -> Iterator[Server]:
    """``leanmoe serve`` on ``model``."""
    arguments = ["-m", "leanmoe.cli", "serve", str(model), *options]
    with _started("lean", arguments, logs, plugin=True) as server:
        server.wait(READY_PATH)
        yield server


@contextmanager
def _started(name: str, arguments: list[str], logs: Path, *, plugin: bool) -> Iterator[Server]:
    print(f"  python {' '.join(arguments)}", file=sys.stderr, flush=True)
    server = Server(name, [*arguments, *_FLAGS], logs / f"{name}.log", plugin=plugin)
    with server:
        yield server
