"""How sure a figure is: percentiles under weights, resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leanmoe.stats import Interval

Floats = NDArray[np.float64]


def middle_95(values: Sequence[float] | Floats) -> Interval | None:
    """The range that holds the middle 95 % of resampled values; ``None`` where none is finite."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    return Interval(float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975)))


def mean_interval(values: Sequence[float], seed: int, resamples: int = 1000) -> Interval | None:
    """Of a mean, by resampling ``values`` with replacement; ``None`` below two values."""
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    return middle_95(data[draws].mean(axis=1))


class Sample:
    """Values of owners (gaps of requests), sorted once, asked under many weightings of owners."""

    def __init__(self, values: Sequence[Sequence[float]]) -> None:
        sizes = np.asarray([len(row) for row in values], dtype=np.int64)
        flat = np.asarray([value for row in values for value in row], dtype=np.float64)
        order = np.argsort(flat, kind="stable")
        self.values: Floats = flat[order]
        self._owners = np.repeat(np.arange(sizes.size), sizes)[order]

    def percentiles(self, points: Sequence[float], weights: Floats) -> Floats:
        """As ``numpy.percentile``, of every value repeated as often as its owner weighs.

        Weights are whole numbers; NaN where nothing weighs anything.
        """
        ends = np.cumsum(weights[self._owners])
        if not ends.size or ends[-1] == 0:
            return np.full(len(points), np.nan)
        places = np.asarray(points) / 100 * (ends[-1] - 1)
        whole = np.floor(places)
        below = self.values[np.searchsorted(ends, whole, side="right")]
        above = self.values[np.searchsorted(ends, np.ceil(places), side="right")]
        return np.asarray(below + (above - below) * (places - whole))

    def mean(self, weights: Floats) -> float:
        """NaN where nothing weighs anything."""
        own = weights[self._owners]
        return float(own @ self.values / own.sum()) if own.sum() else float("nan")
