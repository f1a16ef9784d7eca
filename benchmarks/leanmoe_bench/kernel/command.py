"""``leanmoe bench kernel``: arguments and table.

The module is also what the process runs that times the kernel, in the engine's environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_shape(parser)
    options.add_rounds(parser, "timings of every way, in turns")


def _run(args: argparse.Namespace) -> Result:
    shape, rounds = options.shape_of(args), options.rounds_of(args)
    with stop_on_signals():
        rows = _measure(shape, rounds, args.seed)
    return {"environment": environment(), "rounds": rounds, "kernel": rows}


def _measure(shape: Shape, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Ratios of redirect and compact to the full kernel at each number of rows."""
    layer = {
        "experts": shape.experts,
        "top_k": shape.top_k,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "rounds": rounds,
        "seed": seed,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(layer)],
        env=engine_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LeanMoEError(f"the kernel measurement ended with code {done.returncode}")
    return [_row(shape.name, row) for row in json.loads(done.stdout.splitlines()[-1])]


def _row(shape: str, row: dict[str, Any]) -> dict[str, Any]:
    seconds = row["seconds"]
    result = {
        "shape": shape,
        "rows": row["rows"],
        "skipped": row["skipped"],
        "full_ms": median(seconds["full"]) * 1e3,
    }
    for way in ("redirect", "compact"):
        ratio = paired_ratio(seconds["full"], seconds[way])
        result[way] = {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}
    return result


def _show(result: Result) -> str:
    return "\n".join(_line(row) for row in result["kernel"])


def _line(row: dict[str, Any]) -> str:
    ways = [
        f"{way} {row[way]['ratio']:.2f}x ({row[way]['low']:.2f} to {row[way]['high']:.2f})"
        for way in ("redirect", "compact")
    ]
    what = f"{row['shape']:6}{row['rows']:>5} rows  {row['skipped']:>4.0%} skipped"
    return "  ".join([what, f"full {row['full_ms']:9.2f} ms", *ways])


COMMAND = Command(
    name="bench kernel",
    help="Time the CPU kernel's ways of leaving assignments out against the full kernel.",
    example="leanmoe bench kernel --shape M --rounds 20",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)


if __name__ == "__main__":
    from leanmoe_bench.kernel.crossover import main

    main()
