"""``leanmoe bench kernel``: which way of leaving assignments out wins at how many rows."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape


def measure(shape: Shape, rounds: int, seed: int) -> list[dict[str, Any]]:
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


if __name__ == "__main__":
    from leanmoe_bench.kernel.crossover import main

    main()
