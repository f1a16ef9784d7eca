"""What a layer offers to keep: whole sets of experts to take one of, or single experts.

An offer is a table of columns. Each stands for the experts it keeps and has a loss, the layer's
own share so that layers can be compared, and a loss for every domain. C columns, E experts,
D domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe_pruning.methods.saliency import highest

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Offer:
    """The columns of one layer, the choice it would make alone, and how many may be taken."""

    layer: int
    # float64 [C, E]: 1 where the column keeps the expert.
    members_CE: Floats
    losses_C: Floats
    losses_CD: Floats
    # Of each run of columns so many are taken.
    takes: tuple[tuple[range, int], ...]
    # The columns of the layer's own choice.
    own: tuple[int, ...]
    # What is added to the loss, and to that of each domain, whatever is taken.
    base: float = 0.0
    base_D: float = 0.0

    def kept(self, columns: Sequence[int]) -> tuple[int, ...]:
        """Experts that these columns keep, ascending."""
        return tuple(np.flatnonzero(self.members_CE[list(columns)].sum(0) > 0.5).tolist())

    def loss(self, columns: Sequence[int]) -> float:
        return self.base + float(self.losses_C[list(columns)].sum())


def offer_of_sets(
    layer: int,
    kept: Sequence[Sequence[int]],
    losses_S: torch.Tensor,
    losses_SD: torch.Tensor,
    n_experts: int,
) -> Offer:
    """Sets of experts with their losses; the first of the least is the layer's own choice."""
    members_SE = np.zeros((len(kept), n_experts))
    for row, experts in enumerate(kept):
        members_SE[row, list(experts)] = 1.0
    values = losses_S.tolist()
    best = min(range(len(values)), key=values.__getitem__)
    takes = ((range(len(kept)), 1),)
    return Offer(layer, members_SE, losses_S.numpy(), losses_SD.numpy(), takes, (best,))


def offer_of_experts(
    layer: int, scores_E: torch.Tensor, coverage_DE: torch.Tensor, keep: int, n_groups: int = 1
) -> Offer:
    """Single experts, of which those with the highest scores are the layer's own choice.

    The loss is the share of all scores that goes; that of a domain the share of its
    ``coverage_DE`` that goes.
    """
    n_experts = len(scores_E)
    size, share = n_experts // n_groups, keep // n_groups
    scores_E = scores_E.double() / scores_E.double().sum().clamp_min(1e-300)
    groups = [range(start, start + size) for start in range(0, n_experts, size)]
    return Offer(
        layer,
        np.eye(n_experts),
        -scores_E.numpy(),
        -coverage_DE.T.contiguous().numpy(),
        tuple((group, share) for group in groups),
        highest(scores_E.tolist(), keep, n_groups),
        base=1.0,
        base_D=1.0,
    )
