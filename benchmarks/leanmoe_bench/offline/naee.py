"""All subsets of a Mixtral-8x7B layer by Gram matrices, beside running the block for each."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from leanmoe_bench.offline import naee_timing
from leanmoe_bench.offline.naee_timing import LayerCut
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape

_KEEPS = [6, 4]
TARGET = 15.0


def measure(shape: Shape, tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """One row: seconds of both ways and the ratio with its spread."""
    cut = LayerCut(
        experts=shape.experts,
        top_k=shape.top_k,
        hidden=shape.hidden,
        ffn=shape.ffn,
        tokens=tokens,
        keeps=_KEEPS,
        rounds=rounds,
        seed=seed,
    )
    found = naee_timing.measure(cut)
    gram, runs = found["seconds"]["gram"], found["seconds"]["runs"]
    ratio = paired_ratio(runs, gram)
    return {
        **asdict(cut),
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
