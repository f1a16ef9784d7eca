"""Scoring a checkpoint larger than the memory it may use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from leanmoe_bench.offline.limited import run_limited
from leanmoe_bench.shapes import Shape, write_checkpoint

LIMIT = 6 << 30
_WINDOW = 256


def measure(shape: Shape, work: Path, tokens: int, seed: int) -> dict[str, Any]:
    """One row: peaks of ``leanmoe score`` beside what is promised."""
    model = write_checkpoint(shape, work / f"shape-{shape.name}-{seed}", seed)
    data = work / "ids.safetensors"
    generator = torch.Generator().manual_seed(seed)
    size = (tokens // _WINDOW, _WINDOW)
    save_file({"ids": torch.randint(0, shape.vocabulary, size, generator=generator)}, data)
    arguments = ["score", str(model), "--data", f"{data}:ids", "--force", "-o"]
    began = time.monotonic()
    peaks = run_limited([*arguments, str(work / "scores")], LIMIT, work / "score.log")
    files = [path.stat().st_size for path in model.glob("*.safetensors")]
    return {
        "checkpoint_bytes": sum(files),
        "largest_shard_bytes": max(files),
        "tokens": tokens,
        "limit_bytes": LIMIT,
        "limited_by": peaks.limited_by,
        "seconds": round(time.monotonic() - began, 1),
        "peak_anonymous_bytes": peaks.anonymous,
        "peak_resident_bytes": peaks.total,
        "bound_bytes": bound(shape, tokens),
    }


def bound(shape: Shape, tokens: int) -> int:
    """What scoring promises: 1.5 times the largest layer, the activations and 2 GiB."""
    parameters = shape.experts * (shape.expert_parameters + shape.hidden)
    layer = 2 * (parameters + shape.attention_parameters + 2 * shape.hidden)
    return 3 * layer // 2 + 4 * tokens * shape.hidden + (2 << 30)


def show(row: dict[str, Any]) -> str:
    """For people."""
    gib = {name: value / (1 << 30) for name, value in row.items() if name.endswith("_bytes")}
    return (
        f"score of {gib['checkpoint_bytes']:.1f} GiB on {row['tokens']} tokens within "
        f"{gib['limit_bytes']:.0f} GiB ({row['limited_by']}), {row['seconds']:.0f} s: peak "
        f"{gib['peak_anonymous_bytes']:.2f} GiB anonymous, {gib['peak_resident_bytes']:.2f} GiB "
        f"resident, bound {gib['bound_bytes']:.2f} GiB"
    )
