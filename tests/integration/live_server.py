"""A ``leanmoe serve`` process for tests: real start, spoken to over HTTP, stopped by signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from leanmoe.process.environment import engine_environment
from leanmoe.process.ports import free_port
from leanmoe.wire import ADMIN_HEADER
from leanmoe_server.keys.key_source import ADMIN_KEY_VARIABLE

START_SECONDS = 300.0
ADMIN_KEY = "s3cret-admin-of-the-tests"
STOP_SECONDS = 120.0
_FLAGS = ("--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8")
_CACHE = ("--kv-cache-memory-bytes", "100000000")
T = TypeVar("T")


def wait_for(read: Callable[[], T], holds: Callable[[T], bool], seconds: float) -> T:
    """``read()`` until it ``holds``; the last value, held or not, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds(value := read()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return value


@dataclass
class LiveServer:
    """One running server and what a client needs to reach it."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]
    admin_key: str = ADMIN_KEY

    def client(self, api_key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=120)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=dict(headers or {}), timeout=60)

    def put_level(
        self, content: object, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """``PUT /v1/expert_skipping`` with JSON, or with raw text where ``content`` is a string.

        By the administrator, unless other ``headers`` are given.
        """
        sent = {ADMIN_HEADER: self.admin_key} if headers is None else dict(headers)
        body = {"content": content} if isinstance(content, str) else {"json": content}
        url = f"{self.url}/v1/expert_skipping"
        return httpx.put(url, headers=sent, timeout=120, **body)

    def answer(self, text: str = "What is the capital of France?", tokens: int = 16) -> str:
        """Greedy chat of exactly ``tokens`` tokens."""
        chat = self.client().chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": text}],
            max_tokens=tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        return chat.choices[0].message.content or ""

    def metrics(self) -> dict[tuple[str, str], float]:
        """Samples of a scrape by (name, value of the ``layer`` or ``process`` label or '')."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {
            (s.name, s.labels.get("layer") or s.labels.get("process") or ""): s.value
            for family in families
            for s in family.samples
        }

    def processes(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


def serve_command(model: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "leanmoe.cli", "serve", str(model), *arguments]


def _wait_until_listening(server: LiveServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            server.get("/health")
            return
        except httpx.TransportError:
            time.sleep(0.2)
    tail = server.log.read_text(errors="replace")[-4000:]
    raise AssertionError(f"the server did not start (exit {server.process.poll()}):\n{tail}")


def stop(server: LiveServer) -> None:
    """SIGTERM, then after a deadline SIGKILL to the processes this server started."""
    family = server.processes() if server.process.poll() is None else []
    if family:
        server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for process in family:
            if process.is_running():
                process.kill()
        server.process.wait(STOP_SECONDS)


def _environment(added: Mapping[str, str], popen: type[subprocess.Popen[bytes]]) -> dict[str, str]:
    """The user's; or that of the engine, for which the command would start a Python anew."""
    given = {**os.environ, **added}
    return given if popen is subprocess.Popen else engine_environment(base=given)


@contextmanager
def live_server(
    model: Path,
    log: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[str] = (*_FLAGS, *_CACHE),
    popen: type[subprocess.Popen[bytes]] = subprocess.Popen,
) -> Iterator[LiveServer]:
    """A server on a free loopback port that listens, ready or not; stopped at the end.

    ``popen`` starts it: as a user does, unless another is given.
    """
    port = free_port()
    command = serve_command(model, "--host", "127.0.0.1", "--port", str(port), *flags, *arguments)
    with log.open("wb") as out:
        process = popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment({ADMIN_KEY_VARIABLE: ADMIN_KEY, **(environment or {})}, popen),
            start_new_session=True,
        )
    key = (environment or {}).get(ADMIN_KEY_VARIABLE, ADMIN_KEY)
    server = LiveServer(f"http://127.0.0.1:{port}", str(model), log, process, key)
    try:
        _wait_until_listening(server)
        yield server
    finally:
        stop(server)
