"""Hidden neurons of merged experts put in the dominant expert's order (weight matching).

An expert computes the same whatever the order of its hidden neurons, and an average of two
experts is only sensible in one order for both. The order of largest summed inner product of
all three projections is found exactly (Git Re-Basin, arXiv 2209.04836, as in M-SMoE), in time
that grows with the cube of the hidden width. F expert hidden, D model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from leanmoe_pruning.later import optimize
from leanmoe_pruning.methods.merging.grouping import Grouping
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights


def align_(weights: LayerWeights, grouping: Grouping) -> None:
    """Reorder the neurons of every member of a group to its dominant expert's, in place."""
    for chief, group in zip(grouping.dominant, grouping.members, strict=True):
        for expert in group:
            if expert != chief:
                weights.reorder_hidden_(expert, matching(weights, chief, expert))


def matching(weights: LayerWeights, chief: int, expert: int) -> torch.Tensor:
    """The neuron of ``expert`` that stands for each of ``chief``'s, int64 ``[F]``."""
    likeness_FF = sum(
        left_FD @ right_FD.T
        for left_FD, right_FD in zip(_rows(weights, chief), _rows(weights, expert), strict=True)
    )
    assert isinstance(likeness_FF, torch.Tensor)
    _, found = optimize.linear_sum_assignment(likeness_FF.numpy(), maximize=True)
    return torch.from_numpy(found)


def _rows(weights: LayerWeights, expert: int) -> Iterable[torch.Tensor]:
    """A row per neuron of every projection, float32 ``[F, D]``."""
    views = weights.views
    yield views["gate_proj"][expert].float()
    yield views["up_proj"][expert].float()
    yield views["down_proj"][expert].float().T
