"""The population of Algorithm 1: its random beginning, and who stands before whom.

Individuals are sorted by score, the best first; parents are taken from those near the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leanmoe_pruning.methods.eep.draws import Draws
from leanmoe_pruning.methods.eep.individual import Individual


@dataclass(frozen=True)
class Population:
    """Individuals and their scores, the best first."""

    members: Sequence[Individual]
    scores: Sequence[float]

    def __len__(self) -> int:
        return len(self.members)

    def first_below(self, threshold: float) -> int:
        """The first place, not 0, whose score is more than ``threshold`` under the best."""
        best = self.scores[0]
        below = (i for i in range(1, len(self)) if best - self.scores[i] > threshold)
        return next(below, len(self) - 1)


def shuffle_ties(scores: Sequence[float], draws: Draws) -> list[int]:
    """Places sorted by score, the best first, those of equal scores in random order."""
    order: list[int] = []
    for score in sorted(set(scores), reverse=True):
        equal = [place for place, other in enumerate(scores) if other == score]
        order += [equal[i] for i in draws.shuffle(len(equal))]
    return order


def new_individual(n_groups: int, n_slots: int, n_experts: int, draws: Draws) -> Individual:
    """Each group keeps a random selection of experts, in ascending order."""
    experts = torch.zeros(n_groups, n_slots, n_experts)
    for group in range(n_groups):
        kept = sorted(draws.sample(n_experts, n_slots))
        experts[group, torch.arange(n_slots), kept] = 1.0
    return Individual(experts, experts.clone())
