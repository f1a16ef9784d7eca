"""Intervals of the difference of two shares on the same items.

For a difference of paired shares Newcombe's hybrid score interval (R. G. Newcombe, Statistics in
Medicine 17, 1998, 2635-2650, method 10), and McNemar's exact test, which asks whether the
items that only one of both has right could be a fair coin's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leanmoe.stats import wilson


@dataclass(frozen=True)
class Paired:
    """How two models answer the same items."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        pairs = list(zip(first, second, strict=True))
        return cls(
            pairs.count((True, True)),
            pairs.count((True, False)),
            pairs.count((False, True)),
            pairs.count((False, False)),
        )

    @property
    def total(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The first's share less the second's."""
        return (self.only_first - self.only_second) / self.total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Newcombe's interval of the difference."""
        n, first, second = self.total, self.both + self.only_first, self.both + self.only_second
        (low_1, high_1), (low_2, high_2) = (wilson(k, n, confidence) for k in (first, second))
        down_1, up_1 = first / n - low_1, high_1 - first / n
        down_2, up_2 = second / n - low_2, high_2 - second / n
        phi = self._correlation()
        below = math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
        above = math.sqrt(max(0.0, up_1**2 - 2 * phi * up_1 * down_2 + down_2**2))
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    def _correlation(self) -> float:
        """Newcombe's phi: the answers' correlation, its numerator drawn towards 0 by n / 2."""
        first, second = self.both + self.only_first, self.both + self.only_second
        sizes = first * (self.total - first) * second * (self.total - second)
        if sizes == 0:
            return 0.0
        product = float(self.both * self.neither - self.only_first * self.only_second)
        if product > 0:
            product = max(0.0, product - self.total / 2)
        return product / math.sqrt(sizes)

    def mcnemar(self) -> float:
        """Two-sided exact p-value that both are right equally often."""
        changed = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(changed, k) for k in range(fewer + 1))
        return min(1.0, 2.0 * tail / 2.0**changed) if changed else 1.0
