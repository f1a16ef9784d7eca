"""Arrival times of an open loop: rates, order, seeds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.errors import InputError
from leanmoe_loadtest.arrivals import parse_arrivals

RATES = st.floats(0.1, 50.0)
SECONDS = st.floats(0.5, 60.0)
SEEDS = st.integers(0, 2**31)
KINDS = st.one_of(
    st.builds("constant:{:.6f}".format, RATES),
    st.builds("poisson:{:.6f}".format, RATES),
    st.builds("ramp:{:.6f}-{:.6f}".format, RATES, RATES),
    st.builds("ramp:0-{:.6f}".format, RATES),
    st.builds("step:{:.6f},0,{:.6f}".format, RATES, RATES),
    st.builds("burst:{}/{:.3f}".format, st.integers(1, 50), st.floats(0.5, 20.0)),
)


@settings(max_examples=40)
@given(KINDS, SECONDS, SEEDS)
def test_times_are_sorted_within_the_duration_and_repeat_for_a_seed(
    text: str, seconds: float, seed: int
) -> None:
    times = parse_arrivals(text).times(seconds, seed)
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)
    assert times == parse_arrivals(text).times(seconds, seed)


@settings(max_examples=40)
@given(st.floats(2.0, 100.0), st.integers(0, 1000))
def test_poisson_gaps_have_the_mean_and_spread_of_the_rate(rate: float, seed: int) -> None:
    seconds = 4000 / rate
    times = parse_arrivals(f"poisson:{rate!r}").times(seconds, seed)
    # Six standard deviations of a Poisson count, and as much of the gaps.
    assert abs(len(times) - 4000) < 6 * 4000**0.5
    gaps = np.diff(times) * rate
    assert abs(gaps.mean() - 1) < 0.1
    assert abs(gaps.std() - 1) < 0.2


def test_another_seed_gives_other_times() -> None:
    arrivals = parse_arrivals("poisson:5")
    assert arrivals.times(60, 1) != arrivals.times(60, 2)


def test_constant_arrivals_are_evenly_apart() -> None:
    times = parse_arrivals("constant:4").times(10, 0)
    assert len(times) == 40 and times[0] == 0
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.25] * 39)


def test_a_ramp_sends_three_times_as_many_in_its_second_half() -> None:
    times = np.array(parse_arrivals("ramp:0-200").times(100, 0))
    assert (times >= 50).sum() / (times < 50).sum() == pytest.approx(3, rel=0.1)
    assert len(times) == pytest.approx(10_000, rel=0.05)


def test_steps_last_equally_long() -> None:
    times = np.array(parse_arrivals("step:10,0,40").times(300, 0))
    counts = np.histogram(times, bins=[0, 100, 200, 300])[0]
    assert counts[0] == pytest.approx(1000, rel=0.2)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(4000, rel=0.1)


def test_bursts_come_at_once() -> None:
    assert parse_arrivals("burst:3/5").times(12, 0) == [0, 0, 0, 5, 5, 5, 10, 10, 10]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poisson:0", "a rate of 0"),
        ("constant:-1", "at least 0"),
        ("poisson:nan", "at least 0"),
        ("poisson:inf", "at least 0"),
        ("step:0,0", "a rate of 0"),
        ("ramp:1", "expected constant:RATE"),
        ("burst:0/5", "whole COUNT"),
        ("burst:2.5/5", "whole COUNT"),
        ("burst:2/0", "SECONDS above 0"),
        ("poisson", "expected constant:RATE"),
        ("often:3", "expected constant:RATE"),
        ("poisson:fast", "expected constant:RATE"),
    ],
)
def test_what_is_no_arrivals_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_arrivals(text)


def test_more_arrivals_than_a_machine_can_hold_are_refused() -> None:
    with pytest.raises(InputError, match="more than 1000000"):
        parse_arrivals("poisson:1e6").times(60, 0)
