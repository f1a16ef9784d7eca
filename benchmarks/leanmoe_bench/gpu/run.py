"""The whole run as one JSON object: kernel, backends, throughput, under one deadline."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu import backends, kernel, throughput
from leanmoe_bench.gpu.budget import Budget, OutOfTime
from leanmoe_bench.gpu.models import TIMED
from leanmoe_bench.serve import environment
from leanmoe_bench.shapes import Shape

Result = dict[str, Any]
OUT_OF_TIME = {"status": "not run", "reason": "out of time"}
DRY = {"status": "not run", "reason": "dry run: no GPU is used"}


def say(text: str) -> None:
    """One line for people; standard output belongs to the JSON."""
    print(f"[gpu_check] {text}", file=sys.stderr, flush=True)


def tried(budget: Budget, needs: float, part: Callable[[], Result]) -> Result:
    """A part's result, or why there is none; the next part runs in any case."""
    try:
        with budget.part(needs):
            return part()
    except OutOfTime:
        return dict(OUT_OF_TIME)
    except Exception as error:  # whatever it is, what was measured so far must be printed
        reason = (
            str(error) if isinstance(error, LeanMoEError) else f"{type(error).__name__}: {error}"
        )
        return {"status": "failed", "reason": reason, "passed": False}


def _gpu() -> Result:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def _backends(budget: Budget, work: Path, seed: int) -> Iterator[Result]:
    for cell in backends.CELLS:
        named = cell.name
        say(f"backend {named['backend']} on {named['weights']}, {budget.left():.0f} s left")
        check = partial(backends.check, cell, work, seed)
        found = tried(budget, backends.NEEDS_SECONDS, check)
        yield {**named, **found}


def _throughput(budget: Budget, shape: Shape, work: Path, seed: int) -> Result:
    say(f"throughput of {shape.name}, {budget.left():.0f} s left")
    rows: list[Result] = []

    def measure() -> Result:
        for row in throughput.compare(shape, work, seed):
            rows.append(row)
            say(f"  {row['case']} {row['measure']}: {row.get('ratio', row.get('equal'))}")
        return {"status": "ran"}

    found = tried(budget, throughput.NEEDS_SECONDS, measure)
    return {"shape": shape.name, **found, "rows": rows}


def run(seconds: float, seed: int, work: Path | None = None) -> Result:
    """Everything, on the GPU."""
    start, budget = time.monotonic(), Budget(seconds)
    with tempfile.TemporaryDirectory(prefix="leanmoe-gpu-") as temporary:
        folder = work or Path(temporary)
        report: Result = {
            "tool": "gpu_check",
            "dry_run": False,
            "environment": {**environment(), "gpu": _gpu()},
            "kernel": tried(budget, 10.0, lambda: kernel.check("cuda")),
            "backends": list(_backends(budget, folder, seed)),
            "throughput": [_throughput(budget, shape, folder, seed) for shape in TIMED],
        }
    return _summed_up(report, seconds, time.monotonic() - start)


def dry_run(seconds: float) -> Result:
    """What a CPU can do: the kernel under the interpreter; the rest as a plan, marked so."""
    start, budget = time.monotonic(), Budget(seconds)
    report: Result = {
        "tool": "gpu_check",
        "dry_run": True,
        "environment": environment(),
        "kernel": tried(budget, 1.0, lambda: kernel.check("cpu")),
        "backends": [{**cell.name, **DRY} for cell in backends.CELLS],
        "throughput": [
            {"shape": shape.name, **DRY, "rows": [], "planned": throughput.planned(shape)}
            for shape in TIMED
        ],
    }
    return _summed_up(report, seconds, time.monotonic() - start)


def _parts(report: Result) -> list[Result]:
    rows = [row for part in report["throughput"] for row in part["rows"]]
    return [report["kernel"], *report["backends"], *report["throughput"], *rows]


def _summed_up(report: Result, seconds: float, taken: float) -> Result:
    """``passed``: nothing that ran failed. ``complete``: everything ran or cannot run here."""
    parts = _parts(report)
    return {
        **report,
        "budget_seconds": seconds,
        "seconds": round(taken, 1),
        "passed": all(part.get("passed", True) for part in parts)
        and not any(part.get("status") == "failed" for part in parts),
        "complete": not any(part.get("status") == "not run" for part in parts),
    }
