"""The demo's servers: a question, a metric and the memory of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import HEALTH_PATH, METRICS_PATH, READY_PATH

MODEL_NAME = "reference"


class Server(LocalServer):
    """A live server on loopback, named as its column is; ``ready`` answers once it serves."""

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, ready: str, *, plugin: bool
    ) -> None:
        super().__init__(name, arguments, log, plugin=plugin)
        self._ready = ready

    def wait_until_ready(self) -> None:
        self.wait(self._ready)

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


# The engine flags all servers get.
_FLAGS = (
    *("--served-model-name", MODEL_NAME),
    *("--max-model-len", "1024", "--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", "500000000"),
)


def stock_server(model: Path, logs: Path) -> Server:
    """vLLM's own API server on ``model``, without the plugin, starting."""
    module = "vllm.entrypoints.launchers.api_server.entry"
    return _started("stock", ["-m", module, "--model", str(model)], logs, plugin=False)


def lean_server(name: str, model: Path, logs: Path, *options: str) -> Server:
    """``leanmoe serve`` on ``model``, starting."""
    arguments = ["-m", "leanmoe.cli", "serve", str(model), *options]
    return _started(name, arguments, logs, plugin=True)


def _started(name: str, arguments: list[str], logs: Path, *, plugin: bool) -> Server:
    print(f"  python {' '.join(arguments)}", file=sys.stderr, flush=True)
    ready = READY_PATH if plugin else HEALTH_PATH
    return Server(name, [*arguments, *_FLAGS], logs / f"{name}.log", ready, plugin=plugin)


@contextmanager
def ready_servers(starts: Sequence[Callable[[], Server]]) -> Iterator[list[Server]]:
    """All of them, started at once: most of a start keeps one core busy and not the other."""
    with ExitStack() as stack:
        servers = [stack.enter_context(start()) for start in starts]
        for server in servers:
            server.wait_until_ready()
        yield servers
