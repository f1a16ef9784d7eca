"""Intervals of shares: what scipy gives, what symmetry asks, and how often they are right."""

from __future__ import annotations

from math import comb, factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from leanmoe.stats import wilson
from leanmoe_pruning.evaluation.intervals import Paired

COUNTS = st.integers(0, 60)
TABLES = st.builds(Paired, COUNTS, COUNTS, COUNTS, COUNTS).filter(lambda table: table.total > 0)


def _by_hand(first: int, second: int, total: int, phi: float) -> tuple[float, float]:
    """The interval of the difference of two shares whose answers correlate so."""
    (low_1, high_1), (low_2, high_2) = (
        binomtest(right, total).proportion_ci(method="wilson") for right in (first, second)
    )
    one, two = first / total, second / total
    below = (one - low_1) ** 2 - 2 * phi * (one - low_1) * (high_2 - two) + (high_2 - two) ** 2
    above = (high_1 - one) ** 2 - 2 * phi * (high_1 - one) * (two - low_2) + (two - low_2) ** 2
    return one - two - below**0.5, one - two + above**0.5


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(total, data, confidence):
    right = data.draw(st.integers(0, total))
    low, high = wilson(right, total, confidence)
    theirs = binomtest(right, total).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0.0 <= low <= right / total <= high <= 1.0


@given(TABLES)
def test_mcnemar_equals_the_sign_test(table):
    changed = table.only_first + table.only_second
    expected = binomtest(table.only_first, changed).pvalue if changed else 1.0
    assert table.mcnemar() == pytest.approx(expected)


@given(TABLES)
def test_the_difference_lies_inside_and_turns_with_the_models(table):
    low, high = table.interval()
    assert -1.0 <= low <= table.difference + 1e-12
    assert table.difference <= high + 1e-12 <= 1.0 + 1e-12
    turned = Paired(table.both, table.only_second, table.only_first, table.neither)
    assert turned.interval() == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(
    ("cells", "limits"),
    [
        # Newcombe's own example (table II, method 10), answers against each other.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        # By hand, with an odd number: phi is (10 * 7 - 3 * 1 - 10.5) / sqrt(13 * 8 * 11 * 10).
        ((10, 3, 1, 7), _by_hand(13, 11, 21, 56.5 / (13 * 8 * 11 * 10) ** 0.5)),
    ],
)
def test_paired_intervals_of_known_tables(cells, limits):
    assert Paired(*cells).interval() == pytest.approx(limits, abs=6e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_a_table_counts_its_pairs(pairs):
    first, second = zip(*pairs, strict=True)
    table = Paired.of(first, second)
    assert table.total == len(pairs)
    assert table.difference == pytest.approx((sum(first) - sum(second)) / len(pairs))
    assert Paired.of(first, first).interval()[0] <= 0.0 <= Paired.of(first, first).interval()[1]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_wilson_holds_what_it_promises(share):
    total = 100
    held = 0.0
    for right in range(total + 1):
        low, high = wilson(right, total)
        if low <= share <= high:
            held += comb(total, right) * share**right * (1 - share) ** (total - right)
    assert 0.92 < held < 0.98


@pytest.mark.parametrize(
    "cells", [(0.6, 0.2, 0.1, 0.1), (0.3, 0.1, 0.1, 0.5), (0.8, 0.05, 0.1, 0.05)]
)
def test_paired_interval_holds_what_it_promises(cells):
    """Over every table of 24 items, weighted by how likely it is."""
    n, truth, held = 24, cells[1] - cells[2], 0.0
    for both in range(n + 1):
        for first in range(n + 1 - both):
            for second in range(n + 1 - both - first):
                table = Paired(both, first, second, n - both - first - second)
                low, high = table.interval()
                if low <= truth <= high:
                    held += _likely(table, cells)
    assert 0.93 < held < 0.99


def _likely(table: Paired, cells: tuple[float, ...]) -> float:
    counts = (table.both, table.only_first, table.only_second, table.neither)
    found = float(factorial(table.total))
    for count, share in zip(counts, cells, strict=True):
        found *= share**count / factorial(count)
    return found
