"""Run a command, end it at one durable step after the other, and run it again each time.

``python -m tests.killing FOLDER ARGUMENT...`` runs ``leanmoe ARGUMENT... -o FOLDER/N`` in forked
processes and kills -9 each as it reaches its N-th step (a file synced, or something renamed),
N = 1, 4, 7, ... until one comes through; a layer has seven, so every kind is met. ``@`` in an
argument stands for FOLDER/N. ``--every`` takes each step, ``--renames`` those that rename alone.
Prints one JSON line per N: what was left, hidden or finished (``there``), and how the second run
ended. Forking needs a process that never started a thread, hence one of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from leanmoe.cli import main
from leanmoe_pruning.commands import prune, score
from leanmoe_pruning.forward.families import known

# Imported once, before forking: what the command would import only when it runs.
_LOADED = (known, prune, score)
_RENAMES = ("replace", "rename")


def _in_child(arguments: list[str], report: Path, kill_at: int | None, steps: list[str]) -> int:
    """The exit status of a forked run; ``kill_at`` its step it dies of SIGKILL."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            _kill_at(kill_at, steps)
        sys.stdout = report.open("w", encoding="utf-8")
        code = main([*arguments, "--json"])
        sys.stdout.flush()
        os._exit(code)
    return os.waitpid(child, 0)[1]


def _kill_at(count: int, steps: list[str]) -> None:
    seen: list[str] = []

    def counted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def step(*given: Any, **named: Any) -> None:
            seen.append(name)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*given, **named)

        return step

    for name in steps:
        setattr(os, name, counted(name, getattr(os, name)))


def run(folder: Path, arguments: list[str], stride: int, steps: list[str]) -> None:
    """One line per step at which the command was killed."""
    kill_at, status = 1 - stride, signal.SIGKILL
    while status == signal.SIGKILL:
        kill_at += stride
        out, report = folder / str(kill_at), folder / f"{kill_at}.json"
        command = [*(one.replace("@", str(out)) for one in arguments), "-o", str(out)]
        status = _in_child(command, report, kill_at, steps)
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        there = sorted(path.name for path in folder.glob(f"{kill_at}*") if path.is_dir())
        again = _in_child(command, report, None, steps) if status == signal.SIGKILL else None
        found = {
            **{"kill_at": kill_at, "status": status},
            **{"left": left, "there": there, "again": again},
        }
        text = report.read_text(encoding="utf-8")
        print(json.dumps({**found, "result": json.loads(text or "null")}), flush=True)


def _parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--renames", action="store_true")
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    return args, args.command


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, command = _parsed()
    single = given.every or given.renames
    steps = [*_RENAMES, *(() if given.renames else ("fsync",))]
    run(given.folder, command, 1 if single else 3, steps)
