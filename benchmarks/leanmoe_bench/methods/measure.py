"""Every run of a comparison, one after the other, each kept as soon as it is done.

A folder holds the source model, its score bundle and a JSON file per finished run, so that a
comparison of hours can be stopped and goes on where it was. Checkpoints are removed once judged.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.files.output import atomic_write_json
from leanmoe_bench.methods.runs import Calibration, Judging, Run
from leanmoe_bench.reference import reference_model

FULL = "full model"
_FULL_FILE = "full.json"


def measure(
    runs: Sequence[Run], calibration: Calibration, judging: Judging, work: Path
) -> Iterator[dict[str, Any]]:
    """The full model's figures, then those of every run."""
    work.mkdir(parents=True, exist_ok=True)
    model, scores = reference_model(work), work / "scores"
    yield _once(work / _FULL_FILE, lambda: _judged_full(model, judging))
    if not (scores / "scores.json").exists():
        _leanmoe("score", str(model), "--data", calibration.mix, "-o", str(scores))
    places = {"model": str(model), "scores": str(scores), "work": str(work)}
    for run in runs:
        yield _once(work / f"{run.name}.json", lambda run=run: _judged(run, places, judging, work))


def finished(runs: Sequence[Run], work: Path) -> list[dict[str, Any]]:
    """The rows that ``work`` holds; ``InputError`` where not even the full model was judged."""
    full = work / _FULL_FILE
    if not full.exists():
        raise InputError(f"{full} is missing, so nothing was measured in {work}; drop --done")
    paths = [full, *(work / f"{run.name}.json" for run in runs)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _once(path: Path, make: Any) -> dict[str, Any]:
    if not path.exists():
        atomic_write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _judged_full(model: Path, judging: Judging) -> dict[str, Any]:
    found = _leanmoe("eval", str(model), *judging.options) | {"model": "{model}"}
    return {"method": FULL, "budget": "8 of 8", "calibration": "none", "seed": 0, "eval": found}


def _judged(run: Run, places: dict[str, str], judging: Judging, work: Path) -> dict[str, Any]:
    out = work / "out"
    made = []
    for leftover in (out, work / "sparse"):
        shutil.rmtree(leftover, ignore_errors=True)
    started, before = time.monotonic(), _cpu_seconds()
    for command in run.commands:
        filled = [part.format(**places, out=str(out)) for part in command]
        made.append(_leanmoe(*filled))
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - before
    against = ("--against", places["model"], "--remember", str(work / "memory"))
    found = _leanmoe("eval", str(out), *against, *judging.options)
    found |= {"model": "{out}", "against": "{model}"}
    row = {key: value for key, value in asdict(run).items() if key != "commands"}
    shown = [" ".join(command) for command in run.commands]
    size = made[0].get("weight_bytes"), made[0].get("source_weight_bytes")
    for leftover in (out, work / "sparse"):
        shutil.rmtree(leftover, ignore_errors=True)
    spent = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
    return {**row, "commands": shown, **spent, "bytes": size, "eval": found}


def _cpu_seconds() -> float:
    """CPU time of the commands that ended so far, which other loads on the machine hardly move."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _leanmoe(*arguments: str) -> dict[str, Any]:
    """A command's one object; what it says goes to stderr."""
    command = [sys.executable, "-m", "leanmoe.cli", *arguments, "--json"]
    # One thread: the CPU time of a command then depends little on what else runs.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, stdout=subprocess.PIPE, env=alone, check=False)
    if ran.returncode != 0:
        raise LeanMoEError(f"`leanmoe {' '.join(arguments)}` failed, see the lines above")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found
