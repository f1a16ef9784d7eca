"""What dumps of several methods hold: weight ratios of the model before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from leanmoe_pruning.budgets.choosing import LossTable
from leanmoe_pruning.evaluation.ratios import LayerRatios, measure_ratios
from leanmoe_pruning.methods.method import Inputs
from leanmoe_pruning.methods.selection import LayerChoice
from leanmoe_pruning.progress import progress

Ratios = dict[str, list[LayerRatios]]


def measure_model_ratios(
    inputs: Inputs, run: str, choices: Sequence[LayerChoice], full: list[LayerRatios]
) -> Ratios:
    """Ratios of the ``full`` model and, where there is data to run it on, of the cut one.

    Both are of one text: what a bundle holds, beside other data with ``--replace``, is not.
    """
    found: Ratios = {"full": full} if full else {}
    if inputs.data is None:
        return found
    stream, ids = inputs.stream(), inputs.data.ids
    if not full or inputs.bundle is not None:
        everything = tuple(range(inputs.shape.n_routed_experts))
        kept = dict.fromkeys(inputs.shape.moe_layers, everything)
        found["full"] = measure_ratios(stream, ids, kept)
    with progress(f"betas of {run}", stream.n_layers) as tick:
        kept = {choice.layer: choice.kept for choice in choices}
        found[run] = measure_ratios(stream, ids, kept, tick)
    return found


def ratio_tensors(ratios: Ratios) -> dict[str, torch.Tensor]:
    """Betas (medians) and means, float64 ``[L]`` each."""
    tensors = {}
    for name, found in ratios.items():
        tensors[f"betas.{name}"] = torch.tensor([r.beta for r in found], dtype=torch.float64)
        tensors[f"ratio_mean.{name}"] = torch.tensor([r.mean for r in found], dtype=torch.float64)
    return tensors


def evidence_of(
    inputs: Inputs, run: str, choices: Sequence[LayerChoice], table: LossTable | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Kept experts, weight ratios before and after, and the losses of an adaptive budget."""
    ratios = measure_model_ratios(inputs, run, choices, [])
    kept = [list(choice.kept) for choice in choices]
    tensors = ratio_tensors(ratios)
    facts: dict[str, Any] = {run: {"kept": kept}}
    facts["betas"] = {name: [one.beta for one in found] for name, found in ratios.items()}
    if table is None:
        return {f"{run}.kept": torch.tensor(kept), **tensors}, facts
    return {**table.tensors(), **tensors}, {**facts, "budget": table.facts()}
