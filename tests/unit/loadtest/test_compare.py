"""Ratios of two loads and their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leanmoe.errors import InputError
from leanmoe_loadtest.reading.compare import compare, parse_ratio_checks, ratio_failures
from leanmoe_loadtest.reading.sides import Side, check_alike
from leanmoe_loadtest.reading.slo import parse_slo
from tests.unit.loadtest.runs import drawn_run, record, run_of


def side(*runs) -> Side:
    return Side([Path(f"run{place}") for place in range(len(runs))], list(runs))


def row(found: dict, name: str) -> dict:
    return next(row for row in found["rows"] if row["figure"] == name)


def test_a_slower_side_has_its_ratio_inside_a_tight_interval():
    found = compare(side(drawn_run(1)), side(drawn_run(2, scale=1.2)), seed=0)
    assert found["paired"] is True
    for name in ("ttft_mean", "ttft_p50", "itl_p50", "itl_p95", "tpot_mean", "e2e_p90"):
        one = row(found, name)
        assert one["ratio"] == pytest.approx(1.2, rel=0.03)
        assert one["low"] <= one["ratio"] <= one["high"] and one["clear"], name
        assert one["high"] - one["low"] < 0.15


def test_pairing_takes_the_prompts_out_of_the_interval():
    a, b = drawn_run(1), drawn_run(2)
    other = drawn_run(2, seed=5)
    paired, apart = (compare(side(a), side(one), seed=0) for one in (b, other))
    assert (paired["paired"], apart["paired"]) == (True, False)
    widths = [
        row(one, "ttft_mean")["high"] - row(one, "ttft_mean")["low"] for one in (paired, apart)
    ]
    # Prompts cost between half and one and a half: unpaired, that is chance.
    assert widths[0] < widths[1] / 2


def test_no_difference_is_seldom_called_one():
    clear = []
    for seed in range(20):
        a, b = drawn_run(seed, count=48), drawn_run(1000 + seed, count=48, seed=1)
        clear.append(row(compare(side(a), side(b), seed=seed), "ttft_p50")["clear"])
    assert np.mean(clear) <= 0.2


def test_runs_that_differ_widen_the_interval():
    scales = (0.8, 1.0, 1.25)
    steady = side(*(drawn_run(seed) for seed in range(3)))
    wild = side(*(drawn_run(10 + seed, scale=scale) for seed, scale in enumerate(scales)))
    calm = row(compare(steady, steady, 0), "itl_mean")
    shaken = row(compare(steady, wild, 0), "itl_mean")
    assert shaken["high"] - shaken["low"] > 5 * (calm["high"] - calm["low"])
    throughput = row(compare(steady, wild, 0), "output_tokens_per_second")
    assert throughput["low"] < throughput["ratio"] < throughput["high"]


def test_one_run_has_no_interval_of_throughput_and_says_so():
    found = compare(side(drawn_run(1)), side(drawn_run(2)), 0, parse_slo("ttft<100ms"))
    assert row(found, "output_tokens_per_second")["low"] is None
    assert any("give three folders" in note for note in found["notes"])
    goodput = row(found, "goodput")
    assert goodput["low"] < 1 < goodput["high"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"users": 8}, "users is 4 in run0 and 8 in"),
        ({"settings": {"users": 4, "max_tokens": 9}}, "max_tokens is 'not set' in run0 and 9 in"),
        ({"prompts": "x.json"}, "prompts is 'builtin'"),
        ({"endpoint": "completions"}, "endpoint is"),
        ({"loop": "open", "arrivals": "poisson:4"}, "loop is 'closed'"),
        ({"duration_seconds": 99.0}, "duration_seconds is 10.0"),
    ],
)
def test_unlike_loads_are_refused(other, words):
    a, b = side(drawn_run(1, count=4)), side(drawn_run(2, count=4, **other))
    with pytest.raises(InputError, match="the loads are unlike") as caught:
        check_alike([a, b])
    assert words in str(caught.value)


def test_what_is_compared_may_differ():
    levels = [{"value": "off", "weight": 1.0}]
    other = drawn_run(
        2, count=4, model="lean", url="http://b", seed=3, levels=levels, workers=["a", "b"]
    )
    check_alike([side(drawn_run(1, count=4)), side(other)])


def test_a_side_without_answers_cannot_be_compared():
    failed = run_of([record(error="HTTP 503")])
    with pytest.raises(InputError, match="nothing to compare"):
        compare(side(failed), side(failed), 0)


def test_the_checks_of_a_comparison_takes_ratios():
    found = compare(side(drawn_run(1)), side(drawn_run(2, scale=1.2)), seed=0)
    passed, failed = parse_ratio_checks(["ttft_p95>1.5x", "ttft_p95>110%"])
    assert ratio_failures([passed], found) == []
    (sentence,) = ratio_failures([failed], found)
    assert sentence.startswith("ttft_p95>110% is true: B/A is 1.")
    with pytest.raises(InputError, match="takes a number alone or with x or %"):
        parse_ratio_checks(["ttft_p95>2s"])
    with pytest.raises(InputError, match="it needs --slo"):
        ratio_failures(parse_ratio_checks(["goodput<0.9"]), found)
