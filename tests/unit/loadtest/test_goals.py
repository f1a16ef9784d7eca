"""Goals and checks as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe.errors import InputError
from leanmoe_loadtest.reading.checks import check_measurable, failures, parse_checks
from leanmoe_loadtest.reading.conditions import parse_condition
from leanmoe_loadtest.reading.figures import FIGURES
from leanmoe_loadtest.reading.slo import goodput, parse_slo
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import read_run
from tests.unit.loadtest.runs import SMALL_RUN, START, record

EVERYTHING = {"slo": True, "quality": True, "open": True}
EXPORTED = {"vllm:kv_cache_usage_perc"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttft", "is no condition; expected something like"),
        ("tftt<1s", "did you mean ttft?"),
        ("ttft<1", "takes a number with us or ms or s or min, found '1'"),
        ("ttft<1sec", "found '1sec'"),
        ("ttft>1s", "a goal is an upper limit"),
        ("ttft<1s;e2e<2s", "is no condition"),
        ("", "--slo is empty"),
        (" , ", "--slo is empty"),
        ("ttft<-1s", "is no condition"),
        ("ttft<1e400s", "is no condition"),
    ],
)
def test_a_wrong_goal_is_named(text, words):
    with pytest.raises(InputError, match="--slo") as caught:
        parse_slo(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttft_p96>2s", "did you mean ttft_p9"),
        ("goodput<99", None),
        ("goodput<99ms", "takes a number alone or with %, found '99ms'"),
        ("skip_rate[off]>0.1", "measured for the whole run only"),
        ("resident_max>2", "takes a number with MB or GB or MiB or GiB"),
        ("ttft_p95 = 2s", "is no condition"),
    ],
)
def test_a_wrong_check_is_named(text, words):
    if words is None:
        assert parse_checks([text])
        return
    with pytest.raises(InputError, match="--fail-if") as caught:
        parse_checks([text])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "lacking", "words"),
    [
        ("goodput<0.9", "slo", "it needs --slo"),
        ("quality_agreement<0.9", "quality", "it needs --quality"),
        ("late_p95>1s", "open", "only an open loop"),
    ],
)
def test_what_the_run_will_not_measure_is_refused_before_it(text, lacking, words):
    checks = parse_checks([text])
    check_measurable(checks, EVERYTHING, {"off"}, lambda: EXPORTED)
    with pytest.raises(InputError, match=words):
        check_measurable(checks, {**EVERYTHING, lacking: False}, {"off"}, lambda: EXPORTED)


def test_what_the_server_does_not_export_is_refused_before_the_run():
    check_measurable(parse_checks(["kv_use_max>0.9"]), EVERYTHING, {"off"}, lambda: EXPORTED)
    with pytest.raises(InputError, match="/metrics has no leanmoe_routed_assignments_total"):
        check_measurable(parse_checks(["skip_rate<0.1"]), EVERYTHING, {"off"}, lambda: EXPORTED)


def test_a_group_the_run_does_not_send_is_refused_before_it():
    with pytest.raises(InputError, match=r"no group '0.4'; it has chat, off"):
        check_measurable(parse_checks(["ttft_p95[0.4]>1s"]), EVERYTHING, {"off", "chat"}, set)


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("ttft_p50>250ms", False),
        ("ttft_p50>=249.99ms", True),
        ("ttft_max[off]>1s", False),
        ("ttft_max[0.5]>1s", True),
        ("goodput<40%", False),
        ("goodput<0.41", True),
        ("error_rate>19%", True),
        ("completed<4", False),
        ("skip_rate>0.39", True),
        ("resident_max>2.9GiB", True),
        ("waiting_max>3", False),
        ("e2e_p99[completions]>1s", False),
    ],
)
def test_a_check_reads_the_runs_figures(text, fails):
    summary = summarise_run(read_run(SMALL_RUN), parse_slo("ttft<1s,itl_p95<50ms"))
    assert bool(failures(parse_checks([text]), summary)) is fails


def test_a_failure_says_what_was_measured():
    summary = summarise_run(read_run(SMALL_RUN))
    (sentence,) = failures(parse_checks(["ttft_p50[off]>0.1s"]), summary)
    assert sentence == "ttft_p50[off]>0.1s is true: 200.0 ms"


def test_a_figure_that_was_not_measured_is_no_pass():
    summary = summarise_run(read_run(SMALL_RUN))
    for text in ("goodput<0.5", "device_max>1GiB", "quality_exact_match<0.9"):
        with pytest.raises(InputError, match="was not measured"):
            failures(parse_checks([text]), summary)


def test_every_figure_has_a_reader_that_stands_absence():
    summary = summarise_run(read_run(SMALL_RUN))
    for name, figure in FIGURES.items():
        value = figure.value(summary)
        assert value is None or isinstance(value, float | int), name


@given(
    number=st.floats(0.001, 1e4).map(lambda x: f"{x:.6f}"),
    unit=st.sampled_from(["us", "ms", "s", "min"]),
    spaces=st.text(" ", max_size=2),
)
def test_a_condition_is_read_whatever_its_spacing(number, unit, spaces):
    text = f"{spaces}ttft{spaces}<={spaces}{number}{spaces}{unit}{spaces}"
    found = parse_condition(text, {"ttft": "time"}, "--slo", "")
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}[unit]
    assert found.limit == pytest.approx(float(number) * scale)
    assert found.holds(found.limit) and not found.holds(found.limit * 1.01)


def test_a_request_cut_off_too_late_already_is_missed():
    cut = RequestRecord(sent=START, chunks=[START + 0.2], unfinished=True)
    slo = parse_slo("ttft<1s,e2e<10s")
    assert goodput([cut], slo, START + 5, None) is None
    assert goodput([cut], slo, START + 11, None)["missed"] == 1
    waiting = RequestRecord(sent=START, unfinished=True)
    assert goodput([waiting], slo, START + 2, None)["broken"] == {"ttft<1s": 1}


def test_an_answer_without_text_waited_for_it_until_the_end():
    silent = RequestRecord(sent=START, ended=START + 2.0)
    assert goodput([silent], parse_slo("ttft<1s"), START + 2, 2.0)["missed"] == 1
    # One token has no gaps and breaks no goal on them.
    single = record(gaps=())
    assert goodput([single], parse_slo("itl<1us,tpot<1us"), START + 2, 2.0)["met"] == 1


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=40), st.floats(0.001, 3.0))
def test_goodput_is_the_share_under_the_limit(waits, limit):
    records = [record(ttft=wait, gaps=()) for wait in waits]
    limit = float(f"{limit:.4f}") + 0.00005
    found = goodput(records, parse_slo(f"ttft<{limit:.5f}s"), START + 10, 10.0)
    expected = sum(r.ttft_seconds < limit for r in records)
    assert found["met"] == expected
    assert found["share_low"] <= found["share"] <= found["share_high"]
