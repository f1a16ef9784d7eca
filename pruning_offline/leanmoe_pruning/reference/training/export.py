"""From a trained block to the file that a rebuild reads, and back."""

from __future__ import annotations

import torch

from leanmoe_pruning.reference.artefact import pack
from leanmoe_pruning.reference.rows import from_rows
from leanmoe_pruning.reference.training.blocks import TrainableBlock

Tensor = torch.Tensor


def packed(block: TrainableBlock) -> dict[str, Tensor]:
    """The tensors of the file."""
    gates, weights = {}, {}
    for name, value in block.parameters.items():
        if name.endswith(".gate"):
            gates[name] = value
        else:
            weights[name] = value.T.contiguous() if block.across(name) else value
    return pack(gates, weights)


def take_stored(block: TrainableBlock) -> None:
    """Give the block the rounded values that its file holds, so that figures are the file's."""
    held = packed(block)
    for name in block.parameters:
        if name.endswith(".gate"):
            value = held[f"{name}.weight"].float()
        else:
            value = from_rows(held[f"{name}.rows"], held[f"{name}.scale"]).float()
        block.parameters[name] = value.T.contiguous() if block.across(name) else value
