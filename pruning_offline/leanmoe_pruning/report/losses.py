"""Losses per layer out of a ``--dump`` directory, where it holds some.

L MoE layers, S subsets of experts, R counts of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json


@dataclass(frozen=True)
class LayerLosses:
    """What the cut loses in each layer, and the range of the alternatives that were weighed."""

    layers: list[int]
    chosen: list[float]
    least: list[float]
    median: list[float]
    most: list[float]
    what: str


def read_losses(directory: Path, kept: Mapping[int, list[int]]) -> LayerLosses | None:
    """Losses of the cut that kept these experts; ``None`` where the method measured none.

    Raises ``InputError`` where the folder is no dump, or one of another cut.
    """
    facts, tensors = _read(directory)
    layers, rows = sorted(kept), [kept[layer] for layer in sorted(kept)]
    runs = {
        name: one["kept"]
        for name, one in facts.items()
        if isinstance(one, dict) and isinstance(one.get("kept"), list)
    }
    if not runs:
        return None
    run = next((name for name, found in runs.items() if found == rows), None)
    if run is None:
        raise InputError(
            f"{directory} is the dump of another cut: the experts kept there are not those of "
            "this checkpoint's manifest; give the folder that --dump wrote beside it"
        )
    try:
        return _of_subsets(tensors, run, layers) or _of_counts(tensors, layers)
    except (IndexError, RuntimeError) as error:
        raise _damaged(directory, error) from None


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        facts = parse_json((directory / "results.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("results.json holds no object")
        return facts, load_file(directory / "results.safetensors")
    except (ValueError, OSError, SafetensorError) as error:
        raise _damaged(directory, error) from None


def _damaged(directory: Path, error: Exception) -> InputError:
    return InputError(
        f"{directory} is not a folder that `leanmoe prune --dump` wrote, or damaged ({error}); "
        "prune again with --dump"
    )


def _of_subsets(
    tensors: Mapping[str, torch.Tensor], run: str, layers: list[int]
) -> LayerLosses | None:
    losses_LS = tensors.get(f"{run}.losses")
    if losses_LS is None or losses_LS.ndim != 2 or len(losses_LS) != len(layers):
        return None
    lowest = losses_LS.amin(1)
    return _losses(
        layers,
        lowest,
        losses_LS,
        f"Sum over batches of the Frobenius norm of the change in the layer's output. Grey: all "
        f"{losses_LS.shape[1]} subsets of experts that could have been kept.",
    )


def _of_counts(tensors: Mapping[str, torch.Tensor], layers: list[int]) -> LayerLosses | None:
    losses_LR, counts_R = tensors.get("budget.losses"), tensors.get("budget.counts")
    chosen_L = tensors.get("budget.chosen")
    if losses_LR is None or counts_R is None or chosen_L is None or len(losses_LR) != len(layers):
        return None
    places_L = (chosen_L[:, None] == counts_R[None]).int().argmax(1)
    chosen = losses_LR.gather(1, places_L[:, None]).flatten()
    return _losses(
        layers,
        chosen,
        losses_LR,
        "Norm of the change in the layer's routed output over the norm of that output. Grey: "
        f"keeping {int(counts_R.min())} to {int(counts_R.max())} experts instead.",
    )


def _losses(layers: list[int], chosen: torch.Tensor, every: torch.Tensor, what: str) -> LayerLosses:
    return LayerLosses(
        layers,
        chosen.tolist(),
        every.amin(1).tolist(),
        every.median(1).values.tolist(),
        every.amax(1).tolist(),
        what,
    )
