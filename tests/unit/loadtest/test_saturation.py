"""The search against servers whose limit is known."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_loadtest.reading.saturation import Bounds, find_saturation, step_of


def summary(share: float, late_ms: float = 1.0) -> dict:
    return {
        "goodput": {
            "share": share,
            "share_low": share,
            "share_high": share,
            "requests_per_second": 5.0,
        },
        "late_ms": {"p95": late_ms},
        "requests": {"completed": 100, "failed": 0},
    }


def limited(limit: float, target: float = 0.95):
    return lambda rate, number: step_of(rate, summary(1.0 if rate <= limit else 0.2), target, 1.0)


@settings(max_examples=60)
@given(st.floats(0.01, 500.0))
def test_the_limit_is_found_within_the_precision(limit):
    found = find_saturation(limited(limit), Bounds(first_rate=1.0, most_steps=40))
    assert found["ended"] == "found"
    assert found["rate"] <= limit <= found["fails_at"]
    assert found["fails_at"] / found["rate"] <= 1.05
    assert found["confirmed"] is True


def test_steps_bound_the_search():
    found = find_saturation(limited(1000.0), Bounds(most_steps=4))
    assert [step["rate"] for step in found["steps"]] == [1.0, 2.0, 4.0, 8.0]
    assert (found["rate"], found["fails_at"], found["ended"]) == (8.0, None, "steps used up")
    assert any("ended early" in note for note in found["notes"])


def test_time_bounds_the_search():
    ticks = count(0, 10)
    found = find_saturation(
        limited(1000.0), Bounds(most_seconds=35, most_steps=40), lambda: next(ticks)
    )
    assert found["ended"] == "time used up" and len(found["steps"]) == 4


def test_a_rate_that_held_by_luck_is_asked_again():
    lucky = iter([True])

    def measure(rate, number):
        holds = rate <= 3.0 or (rate == 4.0 and next(lucky, False))
        return step_of(rate, summary(1.0 if holds else 0.0), 0.95, 1.0)

    found = find_saturation(measure, Bounds(first_rate=4.0, most_steps=40))
    assert found["rate"] <= 3.0 < found["fails_at"]


def test_a_server_that_holds_nothing_has_no_rate():
    found = find_saturation(limited(0.0), Bounds(most_steps=40))
    assert found["rate"] is None and "No rate" in found["notes"][0]
    assert len(found["steps"]) == 11


def test_a_generator_that_falls_behind_ends_the_rise():
    def measure(rate, number):
        return step_of(rate, summary(1.0, late_ms=500.0 if rate > 6 else 1.0), 0.95, 1.0)

    found = find_saturation(measure, Bounds(most_steps=40))
    assert found["rate"] <= 6 < found["fails_at"] == pytest.approx(found["rate"], rel=0.051)
    assert any("generator itself fell behind" in note for note in found["notes"])
