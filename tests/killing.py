"""Run a command, kill -9 it at one durable step after the other, and run it again each time.

``python -m tests.killing FOLDER ARGUMENT...`` runs ``leanmoe ARGUMENT... -o FOLDER/N`` in forked
processes and kills each as it reaches its N-th fsync, N = 1, 4, 7, ... until one comes through;
a layer has six, so every kind is met. Prints one JSON line per N: what was left, and how the
second run ended. Forking needs a process that never started a thread, hence one of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from leanmoe.cli import main
from leanmoe_pruning.commands import score
from leanmoe_pruning.forward.families import known

# Imported once, before forking: what the command would import only when it runs.
_LOADED = (known, score)
_STRIDE = 3


def _in_child(arguments: list[str], report: Path, kill_at: int | None) -> int:
    """The exit status of a forked run; ``kill_at`` its fsync it dies of SIGKILL."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            _kill_at_fsync(kill_at)
        sys.stdout = report.open("w", encoding="utf-8")
        code = main([*arguments, "--json"])
        sys.stdout.flush()
        os._exit(code)
    return os.waitpid(child, 0)[1]


def _kill_at_fsync(count: int) -> None:
    real, seen = os.fsync, []

    def fsync(handle: int) -> None:
        seen.append(handle)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync


def run(folder: Path, arguments: list[str]) -> None:
    """One line per step at which the command was killed."""
    kill_at, status = 1 - _STRIDE, signal.SIGKILL
    while status == signal.SIGKILL:
        kill_at += _STRIDE
        out, report = folder / str(kill_at), folder / f"{kill_at}.json"
        command = [*arguments, "-o", str(out)]
        status = _in_child(command, report, kill_at)
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        again = _in_child(command, report, None) if status == signal.SIGKILL else None
        found = {"kill_at": kill_at, "status": status, "left": left, "again": again}
        print(json.dumps({**found, "result": json.loads(report.read_text())}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), sys.argv[2:])
