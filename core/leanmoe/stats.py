"""How sure a share is: Wilson's score interval (E. B. Wilson, JASA 22, 1927)."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval, 95 % unless something else is said."""

    low: float
    high: float


def wilson(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """Of a share, ``hits`` of ``count``; never empty and never outside 0 to 1."""
    if not count:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = hits / count, 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / scale
    # At the ends the bound is the share itself; rounding would step over it.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == count else min(1.0, centre + half)
    return Interval(low, high)
