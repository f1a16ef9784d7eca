"""A small stored run whose figures can be checked by hand."""

from __future__ import annotations

import json

import pytest

from leanmoe_loadtest.reading.slo import parse_slo
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.run import read_run
from tests.unit.loadtest.runs import SMALL_RUN, record, run_of


@pytest.fixture(scope="module")
def summary() -> dict:
    return summarise_run(read_run(SMALL_RUN), parse_slo("ttft<1s,itl_p95<50ms,e2e<10s"))


def test_latencies_are_those_of_completed_requests(summary):
    assert summary["requests"] == {"completed": 4, "failed": 1, "unfinished": 1}
    assert summary["error_rate"] == pytest.approx(1 / 5)
    assert summary["ttft_ms"]["n"] == 4
    assert summary["ttft_ms"]["p50"] == pytest.approx(250.0)
    assert summary["ttft_ms"]["max"] == pytest.approx(1500.0)
    assert summary["itl_ms"]["n"] == 16
    assert summary["itl_ms"]["mean"] == pytest.approx(1e3 * (0.04 + 0.08 + 0.1 + 0.04) / 16)
    # (e2e - ttft) / 4 further tokens: 12.5, 25, 25, 12.5 ms
    assert summary["tpot_ms"]["mean"] == pytest.approx(18.75)
    assert summary["e2e_ms"]["max"] == pytest.approx(1550.0)


def test_throughput_covers_first_sent_to_last_completed(summary):
    assert summary["measured_seconds"] == pytest.approx(4.55)
    assert summary["output_tokens_per_second"] == pytest.approx(20 / 4.55)
    groups = summary["by_level"].values()
    assert sum(g["output_tokens_per_second"] for g in groups) == pytest.approx(20 / 4.55)


def test_lateness_is_measured_from_the_schedule(summary):
    assert summary["late_ms"]["n"] == 6
    assert summary["late_ms"]["max"] == pytest.approx(4.0, abs=0.01)


def test_goodput_counts_failures_and_leaves_out_the_undecided(summary):
    met = summary["goodput"]
    # Met: the first two. The third has a gap of 70 ms, the fourth waits 1.5 s, the fifth failed.
    assert (met["met"], met["missed"], met["undecided"]) == (2, 3, 1)
    assert met["share"] == pytest.approx(0.4)
    assert met["share_low"] < 0.4 < met["share_high"]
    assert met["requests_per_second"] == pytest.approx(2 / 4.55)
    assert met["broken"] == {"ttft<1s": 1, "itl_p95<50ms": 1, "failed": 1}


def test_groups_are_named_as_the_levels_are_asked_for(summary):
    assert list(summary["by_level"]) == ["0.5", "off"]
    assert summary["by_level"]["0.5"]["applied_levels"] == [0.5]
    assert summary["by_level"]["off"]["requests"] == {
        "completed": 2,
        "failed": 1,
        "unfinished": 1,
    }
    assert list(summary["by_endpoint"]) == ["chat", "completions"]


def test_the_servers_figures_are_growths_and_extremes(summary):
    server = summary["server"]
    assert server["skip_rate"] == pytest.approx(400 / 1000)
    assert server["waiting"] == {"min": 0.0, "mean": pytest.approx(4 / 3), "max": 3.0}
    assert server["kv_use"]["max"] == 0.75
    assert server["resident_bytes"]["max"] == 3 * 2**30
    assert server["preemptions"] == 2.0
    assert server["level_changes"] == 1.0
    assert server["device_bytes"] is None


def test_client_and_server_share_the_time_axis(summary):
    axis = summary["timeline"]
    assert axis["window_seconds"] == 1.0
    assert axis["seconds"] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert axis["client"]["requests_per_second"] == [1.0, 1.0, 1.0, 1.0, 2.0]
    # A latency stands where it was over: the 1500 ms of the fourth request in the fifth window.
    assert axis["client"]["ttft_p50_ms"] == pytest.approx([100.0, 200.0, 300.0, None, 1500.0])
    # Each skip rate is of the time since the reading before, and stands at the later one.
    assert axis["server"]["skip_rate"] == [
        None,
        pytest.approx(0.25),
        None,
        None,
        pytest.approx(0.5),
    ]
    assert axis["server"]["waiting"] == [None, 3.0, None, None, 1.0]
    received = sum(axis["client"]["output_tokens_per_second"])
    assert received == pytest.approx(20)


def test_a_summary_is_json_without_special_numbers(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_notes_say_what_limits_the_figures(summary):
    text = " ".join(summary["notes"])
    assert "Only 4 requests completed" in text
    assert "1 of 6 requests were cut off" in text
    assert "skip level changed 1 times" in text


def test_a_server_without_metrics_is_said_so():
    notes = summarise_run(run_of([record()]))["notes"]
    assert any("no /metrics" in note for note in notes)


def test_another_ones_load_shows_in_the_servers_tokens():
    run = read_run(SMALL_RUN)
    key = 'vllm:generation_tokens_total{engine="0"}'
    run.metrics[-1].samples[key] = 5000.0
    assert any("others used it" in note for note in summarise_run(run)["notes"])
    # The server had generated 50 before the first reading.
    assert not any("others used it" in note for note in summarise_run(read_run(SMALL_RUN))["notes"])


def test_late_sending_is_said_so():
    late = [record(float(n), scheduled=1_000_000.0 + n - 0.2) for n in range(20)]
    run = run_of(late, loop="open", arrivals="poisson:1", users=None)
    assert any("sent requests late (p95 200 ms)" in note for note in summarise_run(run)["notes"])


def test_a_restarted_server_does_not_make_counters_shrink():
    run = read_run(SMALL_RUN)
    for key in list(run.metrics[-1].samples):
        if key.endswith("}") and "_total" in key:
            run.metrics[-1].samples[key] = 0.0
    server = summarise_run(run)["server"]
    assert server["answer_tokens"] == 10.0
    assert server["skip_rate"] == pytest.approx(100 / 400)


def test_text_that_arrives_in_lumps_is_said_so():
    lumps = [record(float(n), gaps=(0.0, 0.0, 0.05)) for n in range(5)]
    summary = summarise_run(run_of(lumps))
    assert summary["pieces_together"] == pytest.approx(2 / 3)
    assert any("67% of the pieces of text arrived together" in note for note in summary["notes"])
    smooth = summarise_run(run_of([record()]))
    assert smooth["pieces_together"] == 0.0
    assert not any("arrived together" in note for note in smooth["notes"])
