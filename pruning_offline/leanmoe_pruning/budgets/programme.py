"""The integer programme of an adaptive budget: which layer keeps how many experts.

Each layer has a loss for every number of experts it may keep; one number is chosen per
layer so that the losses sum to the least while no more than a total is kept. This is a
multiple-choice knapsack, solved to optimality by HiGHS (``scipy.optimize.milp``). Layers
and numbers are laid out flat: N choices in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

import numpy as np

from leanmoe.errors import InputError, LeanMoEError
from leanmoe_pruning.later import optimize, sparse

Losses = Mapping[int, float]
# HiGHS holds constraints to about 1e-7 and gaps to 1e-6: losses are scaled far above both.
_SCALE = 1e5
# Sums closer than this, relative to the worst budget's, are one and the same.
_SAME = 1e-11


def allot(losses: Sequence[Losses], total: int) -> tuple[int, ...]:
    """Experts each layer keeps, by ``losses[layer][count]``, no more than ``total`` in all.

    Of budgets with the same sum of losses the one nearest to an even share is taken (least
    sum of squared distances); what is left undecided HiGHS settles, in one thread and so the
    same way every time. Raises ``InputError`` where even the smallest counts exceed ``total``.
    """
    least = sum(min(layer) for layer in losses)
    if least > total:
        raise InputError(
            f"a budget of {total} experts over {len(losses)} layers is too small: the router needs "
            f"{least} in all; give more"
        )
    programme = _Programme(losses, total)
    best = programme.solve(programme.losses_N)
    limit = programme.sum_of(best) + _SAME * programme.worst
    nearest = programme.solve(programme.distances_N, at_most=limit)
    even = programme.even()
    candidates = [one for one in (best, nearest, even) if one is not None]
    within = [one for one in candidates if programme.sum_of(one) <= limit]
    return min(within, key=lambda one: (programme.distance_of(one), programme.sum_of(one)))


class _Programme:
    """The choices of all layers in one row of 0/1 variables."""

    def __init__(self, losses: Sequence[Losses], total: int) -> None:
        self._losses, self._total = losses, total
        self._share = total / len(losses)
        choices = [(layer, count) for layer, own in enumerate(losses) for count in sorted(own)]
        self._layer_N = np.array([layer for layer, _ in choices])
        self._count_N = np.array([count for _, count in choices])
        self.losses_N = np.array([losses[layer][count] for layer, count in choices])
        self.distances_N = (self._count_N - self._share) ** 2
        self.worst = fsum(max(own.values()) for own in losses)

    def sum_of(self, counts: Sequence[int]) -> float:
        return fsum(own[count] for own, count in zip(self._losses, counts, strict=True))

    def distance_of(self, counts: Sequence[int]) -> float:
        return fsum((count - self._share) ** 2 for count in counts)

    def even(self) -> tuple[int, ...] | None:
        """The same number in every layer, where the total is such a multiple."""
        count = int(self._share)
        fits = count == self._share and all(count in own for own in self._losses)
        return (count,) * len(self._losses) if fits else None

    def solve(self, costs_N: Any, at_most: float | None = None) -> tuple[int, ...]:
        """The counts of least cost, their losses summing to ``at_most``."""
        scaled_N = self.losses_N * (_SCALE / (np.abs(self.losses_N).max() or 1.0))
        limits = [
            *self._one_per_layer(),
            optimize.LinearConstraint(self._count_N[None], ub=self._total),
        ]
        if at_most is not None:
            bound = at_most * (_SCALE / (np.abs(self.losses_N).max() or 1.0))
            limits.append(optimize.LinearConstraint(scaled_N[None], ub=bound))
        found = optimize.milp(
            scaled_N if costs_N is self.losses_N else costs_N,
            integrality=np.ones(len(costs_N)),
            bounds=optimize.Bounds(0, 1),
            constraints=limits,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise LeanMoEError(
                f"the integer programme of the budget has no answer: {found.message}"
            )
        chosen_N = found.x > 0.5
        return tuple(int(count) for count in self._count_N[chosen_N])

    def _one_per_layer(self) -> list[optimize.LinearConstraint]:
        n = len(self._layer_N)
        entries = (np.ones(n), (self._layer_N, np.arange(n)))
        matrix = sparse.csr_array(entries, shape=(len(self._losses), n))
        return [optimize.LinearConstraint(matrix, lb=1.0, ub=1.0)]
