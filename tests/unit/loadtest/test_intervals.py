"""Statistics as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe.stats import wilson
from leanmoe_loadtest.reading.intervals import Sample, mean_interval
from leanmoe_loadtest.stats import distribution_ms

POINTS = [50, 90, 95, 99]
values = st.lists(st.floats(0, 1e3, allow_nan=False), min_size=1, max_size=30)


@given(values)
def test_a_distribution_is_numpys_in_milliseconds(seconds):
    found = distribution_ms(seconds)
    assert found["n"] == len(seconds)
    for p in (50, 90, 95, 99):
        assert found[f"p{p}"] == pytest.approx(1e3 * np.percentile(seconds, p))
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["max"]


@given(st.lists(values, min_size=1, max_size=8), st.data())
def test_weights_count_as_repetitions(rows, data):
    size = len(rows)
    weights = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    repeated = [v for row, weight in zip(rows, weights, strict=True) for v in row * weight]
    sample, weighed = Sample(rows), np.asarray(weights, dtype=np.float64)
    found = [sample.mean(weighed), *sample.percentiles(POINTS, weighed)]
    if not repeated:
        assert np.isnan(found).all()
        return
    expected = [np.mean(repeated), *np.percentile(repeated, POINTS)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_narrows(count, data):
    hits = data.draw(st.integers(0, count))
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    more = wilson(10 * hits, 10 * count)
    assert more.high - more.low < high - low


def test_wilson_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.9):
        hits = random.binomial(60, share, 1000)
        inside = [low <= share <= high for low, high in (wilson(int(h), 60) for h in hits)]
        assert 0.92 <= np.mean(inside) <= 0.99


def test_a_means_interval_covers_it():
    random = np.random.default_rng(1)
    inside = []
    for seed in range(200):
        low, high = mean_interval(random.exponential(1.0, 60).tolist(), seed, resamples=300)
        inside.append(low <= 1.0 <= high)
    assert 0.86 <= np.mean(inside) <= 0.99
    assert mean_interval([1.0], 0) is None
