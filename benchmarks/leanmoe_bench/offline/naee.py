"""All subsets of a Mixtral-8x7B layer by Gram matrices, beside running the block for each."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape

# Run by name in a process of its own: the parts do not import each other.
_MODULE = "leanmoe_pruning.methods.naee.timing"
_KEEPS = [6, 4]
TARGET = 15.0


def measure(shape: Shape, tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """One row: seconds of both ways and the ratio with its spread."""
    wish = {
        "experts": shape.experts,
        "top_k": shape.top_k,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "tokens": tokens,
        "keeps": _KEEPS,
        "rounds": rounds,
        "seed": seed,
    }
    command = [sys.executable, "-m", _MODULE, json.dumps(wish)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LeanMoEError(f"the measurement of naee ended with code {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    gram, runs = found["seconds"]["gram"], found["seconds"]["runs"]
    ratio = paired_ratio(runs, gram)
    return {
        **wish,
        "subsets": found["subsets"],
        "pairs": len(gram),
        "best_dropped": found["best"],
        "gram_seconds": round(median(gram), 3),
        "runs_seconds": round(median(runs), 3),
        "ratio": round(ratio.middle, 2),
        "low": round(ratio.low, 2),
        "high": round(ratio.high, 2),
        "target": TARGET,
    }


def show(row: dict[str, Any]) -> str:
    """For people."""
    spread = f"{row['low']:.1f} to {row['high']:.1f}"
    return (
        f"naee, {row['subsets']} subsets on {row['tokens']} tokens: {row['runs_seconds']:.1f} s by "
        f"running each, {row['gram_seconds']:.1f} s by Gram matrices, {row['ratio']:.1f}x "
        f"({spread}), target {row['target']:.0f}x"
    )
