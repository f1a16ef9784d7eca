"""A server process of the demo: started, asked over HTTP, measured, ended."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe.process.group import ProcessGroup
from leanmoe.process.ports import free_port
from leanmoe.wire import HEALTH_PATH, METRICS_PATH, READY_PATH

START_SECONDS = 420.0
# Loopback is never behind a proxy, whatever the environment says of other hosts.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
MODEL_NAME = "reference"


class Server:
    """A live server on loopback. ``name`` is stock or lean."""

    def __init__(self, name: str, group: ProcessGroup, port: int, log: Path) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.group, self._log = group, log

    def get(self, path: str, timeout: float = 30.0) -> str:
        with _OPENER.open(self.url + path, timeout=timeout) as answer:
            return str(answer.read().decode())

    def wait(self, path: str) -> None:
        """Wait until ``path`` answers 200; raise with the log's end if the process ends."""
        deadline, said = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < deadline:
            if self.group.process.poll() is not None:
                raise LeanMoEError(f"the {self.name} server ended while starting:\n{self._tail()}")
            try:
                self.get(path, timeout=5.0)
                return
            except urllib.error.HTTPError as error:
                said = f": {path} says {error.read().decode(errors='replace')}"
                time.sleep(1.0)
            except OSError:
                time.sleep(1.0)
        raise LeanMoEError(f"the {self.name} server is not up after {START_SECONDS:.0f} s{said}")

    def chat(self, question: str, max_tokens: int = 60) -> str:
        """One greedy answer."""
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _OPENER.open(request, timeout=120.0) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"]).strip()

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

    def close(self) -> None:
        """SIGTERM to the server, SIGKILL to whatever is left of its processes."""
        self.group.signal(signal.SIGCONT)
        self.group.process.terminate()
        self.group.end(grace_seconds=60)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def _flags(port: int) -> list[str]:
    """The engine flags both servers get."""
    return [
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", MODEL_NAME),
        *("--max-model-len", "1024", "--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", "500000000"),
    ]


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
    port, log = free_port(), logs / f"{name}.log"
    print(f"  python {' '.join(arguments)}", file=sys.stderr, flush=True)
    with log.open("wb") as out:
        group = ProcessGroup(
            [sys.executable, "-P", *arguments, *_flags(port)],
            env=engine_environment(plugin=plugin),
            output=out,
        )
    server = Server(name, group, port, log)
    try:
        yield server
    finally:
        server.close()
