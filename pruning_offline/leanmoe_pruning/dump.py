"""``--dump DIR``: what a method decided on, as tensors under the golden sets' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leanmoe.families import MoEShape
from leanmoe.provenance import atomic_directory, atomic_write_json
from leanmoe_pruning.methods.selection import LayerChoice, complement, dropped_subsets
from leanmoe_pruning.recalibrate import LayerRatios
from leanmoe_pruning.shards import write_tensors

Ratios = dict[str, list[LayerRatios]]


def write_dump(
    target: Path,
    shape: MoEShape,
    run: str,
    choices: Sequence[LayerChoice],
    ratios: Ratios,
    batch_split: list[int],
    force: bool,
) -> None:
    """Write ``results.safetensors`` and ``results.json`` into a new directory.

    ``run`` is ``{variant}_r{kept}``; ``ratios`` holds ``full`` and, where it was
    measured, the pruned model under ``run``.
    """
    with atomic_directory(target, force) as directory:
        write_tensors(directory / "results.safetensors", _tensors(shape, run, choices, ratios))
        content = {
            "batch_split": batch_split,
            run: _choices_json(shape, choices, batch_split),
            "betas": {name: [r.beta for r in found] for name, found in ratios.items()},
        }
        atomic_write_json(directory / "results.json", content)


def _tensors(
    shape: MoEShape, run: str, choices: Sequence[LayerChoice], ratios: Ratios
) -> dict[str, torch.Tensor]:
    keep = len(choices[0].kept)
    tensors = {f"{run}.kept": torch.tensor([choice.kept for choice in choices])}
    losses = [choice.losses for choice in choices if choice.losses is not None]
    if losses:
        subsets = dropped_subsets(shape.n_routed_experts, keep)
        tensors[f"dropped_subsets.r{keep}"] = torch.tensor(subsets, dtype=torch.int64).view(
            len(subsets), -1
        )
        tensors[f"{run}.losses"] = torch.stack(losses)
    for name, found in ratios.items():
        tensors[f"betas.{name}"] = torch.tensor([r.beta for r in found], dtype=torch.float64)
        tensors[f"ratio_mean.{name}"] = torch.tensor([r.mean for r in found], dtype=torch.float64)
    return tensors


def _choices_json(
    shape: MoEShape, choices: Sequence[LayerChoice], batch_split: list[int]
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "r": len(choices[0].kept),
        "batch_split": batch_split,
        "dropped": [list(complement(choice.kept, shape.n_routed_experts)) for choice in choices],
        "kept": [list(choice.kept) for choice in choices],
    }
    losses = [choice.losses for choice in choices if choice.losses is not None]
    if losses:
        content["best_loss"] = [float(found.min()) for found in losses]
    return content
