"""A ratio of paired measurements with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import median
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median of the paired ratios and the order-statistic interval around it."""

    middle: float
    low: float
    high: float


def paired_ratio(ours: Sequence[float], stock: Sequence[float]) -> Ratio:
    """Median of ours/stock with its 95 % interval (the whole range below six pairs)."""
    ratios = sorted(a / b for a, b in zip(ours, stock, strict=True))
    cut = _cut(len(ratios))
    return Ratio(median(ratios), ratios[cut], ratios[-1 - cut])


def paired_range(ours: Sequence[float], stock: Sequence[float]) -> Ratio:
    """Median of ours/stock with the smallest and the largest."""
    ratios = sorted(a / b for a, b in zip(ours, stock, strict=True))
    return Ratio(median(ratios), ratios[0], ratios[-1])


def _cut(count: int) -> int:
    """Values to leave out at each end so that the interval still covers the median at 95 %."""
    tail, cut = 0.0, 0
    while cut < count // 2:
        tail += comb(count, cut) / 2**count
        if tail > 0.025:
            break
        cut += 1
    return max(cut - 1, 0)
