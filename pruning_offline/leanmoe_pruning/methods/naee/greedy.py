"""NAEE's search where subsets are too many: experts leave one by one, then swaps refine.

Backward elimination removes the expert whose removal loses least, of every group of
experts one per round; ``width`` sets are carried along (a beam), of equal losses those first
whose pruned experts come first in lexicographic order. Then a kept and a pruned expert of one
group change places as long as that lowers the loss: what is left is a set that no single
swap improves. It need not be the best set, and among sets of equal loss it is not always the
lexicographically first.
"""

from __future__ import annotations

from collections.abc import Sequence

from leanmoe_pruning.methods.naee.removal import Removals
from leanmoe_pruning.methods.selection import complement

# A swap lowers the loss by this share at least: less is noise of the arithmetic.
LEAST_GAIN = 1e-6
Kept = tuple[int, ...]


class Elimination:
    """The sets that elimination leaves, for any number of experts, found as they are asked for."""

    def __init__(self, removals: Removals, n_groups: int, width: int) -> None:
        self._removals, self._n_groups, self._width = removals, n_groups, width
        self._levels: list[list[Kept]] = [[tuple(range(removals.n_experts))]]

    def best(self, keep: int) -> Kept:
        """The best set of ``keep`` experts that was found, unrefined."""
        for _ in range(len(self._levels), self._removals.n_experts - keep + 1):
            self._levels.append(self._next(self._levels[-1]))
        return self._levels[self._removals.n_experts - keep][0]

    def _next(self, sets: Sequence[Kept]) -> list[Kept]:
        found: dict[Kept, float] = {}
        for kept in sets:
            candidates = self._candidates(kept)
            losses = self._removals.losses(kept, candidates).tolist()
            for expert, loss in zip(candidates, losses, strict=True):
                found.setdefault(tuple(one for one in kept if one != expert), loss)
        n_experts = self._removals.n_experts
        order = sorted(found, key=lambda kept: (found[kept], complement(kept, n_experts)))
        return order[: self._width]

    def _candidates(self, kept: Kept) -> list[int]:
        size = self._removals.n_experts // self._n_groups
        held = [sum(one // size == group for one in kept) for group in range(self._n_groups)]
        return [expert for expert in kept if held[expert // size] == max(held)]


def refined(removals: Removals, kept: Kept, n_groups: int) -> tuple[Kept, float]:
    """``kept`` after every swap that improves it, and its loss."""
    loss, changed = removals.loss(kept), True
    while changed:
        changed = False
        for incoming in complement(kept, removals.n_experts):
            better, less = _swapped(removals, kept, incoming, n_groups)
            if less < loss * (1.0 - LEAST_GAIN):
                kept, loss, changed = better, less, True
    return kept, loss


def _swapped(removals: Removals, kept: Kept, incoming: int, n_groups: int) -> tuple[Kept, float]:
    """The best set that has ``incoming`` in place of one of its group."""
    size = removals.n_experts // n_groups
    candidates = [expert for expert in kept if expert // size == incoming // size]
    base = tuple(sorted((*kept, incoming)))
    losses = removals.losses(base, candidates).tolist()
    best = min(range(len(candidates)), key=losses.__getitem__)
    return tuple(one for one in base if one != candidates[best]), losses[best]
