"""Confidence bounds of a mean over tokens when tokens come in windows.

Tokens of one window are alike, so the window is the unit: a ratio estimator
(sum of window sums / sum of window tokens), its linearised variance over windows,
and Student's t with windows - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist


@dataclass(frozen=True)
class WindowMean:
    """Mean per token and its standard error; the error is ``None`` for a single window."""

    mean: float
    standard_error: float | None
    windows: int

    @classmethod
    def of(cls, sums: Sequence[float], tokens: Sequence[int]) -> WindowMean:
        """From each window's sum and token count."""
        total, n = sum(tokens), len(sums)
        mean = math.fsum(sums) / total
        if n < 2:
            return cls(mean, None, n)
        squares = math.fsum((s - mean * t) ** 2 for s, t in zip(sums, tokens, strict=True))
        return cls(mean, math.sqrt(n / (n - 1) * squares) / total, n)

    def upper(self, confidence: float = 0.95) -> float:
        """One-sided upper bound of the mean."""
        return self.mean + self._margin(confidence)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided interval of the mean."""
        margin = self._margin((1.0 + confidence) / 2.0)
        return self.mean - margin, self.mean + margin

    def _margin(self, probability: float) -> float:
        if self.standard_error is None:
            return math.inf
        return student_quantile(probability, self.windows - 1) * self.standard_error


@lru_cache
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for ``probability`` in (0.5, 1), by bisection on its CDF."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        if _student_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite trigonometric sums of Abramowitz and Stegun 26.7.3-4."""
    if freedom > 1000:
        return NormalDist().cdf(t)
    theta = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    if odd:
        return 0.5 + (theta + math.sin(theta) * total) / math.pi
    return 0.5 + math.sin(theta) * total / 2.0
