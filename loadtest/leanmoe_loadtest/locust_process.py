"""Locust in a process of its own: its patching of the standard library stays there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from leanmoe.errors import LeanMoEError
from leanmoe_loadtest.record import RequestRecord

_USER_FILE = Path(__file__).with_name("user.py")
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Load:
    """What to put on a server, and for how long at most."""

    url: str
    model: str
    users: int
    duration_seconds: int
    max_tokens: int
    max_requests: int
    request_seconds: float
    ignore_eos: bool
    seed: int


def _command(load: Load, records: Path) -> list[str]:
    flags = {
        "--host": load.url,
        "--users": load.users,
        "--spawn-rate": load.users,
        "--run-time": f"{load.duration_seconds}s",
        # Answers under way at the end may finish; what does not is counted as unfinished.
        "--stop-timeout": f"{int(load.request_seconds) + 1}s",
        "--chat-model": load.model,
        "--max-tokens": load.max_tokens,
        "--max-requests": load.max_requests,
        "--request-seconds": load.request_seconds,
        "--prompt-seed": load.seed,
        "--records": records,
        "--loglevel": "WARNING",
        "--exit-code-on-error": 0,
    }
    locust = [sys.executable, "-P", "-m", "locust", "--locustfile", str(_USER_FILE), "--headless"]
    given = [part for name, value in flags.items() for part in (name, str(value))]
    return [*locust, "--only-summary", *given, *(["--ignore-eos"] if load.ignore_eos else [])]


def _wait(process: subprocess.Popen[bytes], load: Load) -> None:
    deadline = time.monotonic() + load.duration_seconds + load.request_seconds + _START_SECONDS
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(f"{load.users} users", total=load.duration_seconds)
        while process.poll() is None:
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                progress.advance(bar, 0.5)
            if time.monotonic() > deadline:
                raise LeanMoEError("the load generator did not stop in time; nothing is reported")


def run_load(load: Load) -> list[RequestRecord]:
    """Run Locust without a web page; return what every request did."""
    with tempfile.TemporaryDirectory(prefix="leanmoe-loadtest-") as folder:
        records, log = Path(folder, "records.jsonl"), Path(folder, "locust.log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                _command(load, records), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        try:
            _wait(process, load)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0 or not records.exists():
            tail = log.read_text(errors="replace").strip()[-500:]
            raise LeanMoEError(f"Locust ended with code {process.returncode}: {tail}")
        lines = records.read_text(encoding="utf-8").splitlines()
        return [RequestRecord.model_validate_json(line) for line in lines]
