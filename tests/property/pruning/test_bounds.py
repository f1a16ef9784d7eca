"""Confidence bounds: Student quantiles against tables, coverage against the truth."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe_pruning.evaluation.bounds import WindowMean, student_quantile

# Printed tables of Student's t.
TABLE = [(0.95, 1, 6.3138), (0.95, 2, 2.9200), (0.95, 15, 1.7531), (0.975, 30, 2.0423)]


@pytest.mark.parametrize(("probability", "freedom", "expected"), TABLE)
def test_quantiles_against_a_printed_table(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
def test_equal_windows_are_an_ordinary_t_interval(sums):
    found = WindowMean.of(sums, [10] * len(sums))
    values = [s / 10 for s in sums]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-9)
    assert found.upper() >= found.mean


def test_one_window_has_no_bound():
    assert WindowMean.of([3.0], [10]).upper() == math.inf


def test_the_upper_bound_covers_the_truth_about_95_times_in_100():
    generator = random.Random(0)
    covered = 0
    for _ in range(2000):
        sums = [generator.gauss(1.0, 0.5) for _ in range(8)]
        covered += WindowMean.of(sums, [1] * 8).upper() >= 1.0
    assert 0.935 < covered / 2000 < 0.965
