"""Latencies derived from raw timestamps."""

from __future__ import annotations

import pytest

from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.stats import summarise


def test_latencies_of_a_complete_request() -> None:
    record = RequestRecord(sent=10.0, chunks=[10.5, 10.7, 11.1], ended=11.3, completion_tokens=5)
    assert record.ttft_seconds == pytest.approx(0.5)
    assert record.itl_seconds == pytest.approx([0.2, 0.4])
    assert record.e2e_seconds == pytest.approx(1.3)
    assert record.tpot_seconds == pytest.approx(0.8 / 4)


def test_latencies_of_nothing_are_absent() -> None:
    record = RequestRecord(sent=10.0)
    assert (record.ttft_seconds, record.e2e_seconds, record.tpot_seconds) == (None, None, None)
    assert record.itl_seconds == []
    assert not record.completed


def test_one_token_has_no_time_per_further_token() -> None:
    record = RequestRecord(sent=0.0, chunks=[1.0], ended=1.0, completion_tokens=1)
    assert record.completed and record.tpot_seconds is None


def test_a_summary_of_failures_holds_no_latency() -> None:
    records = [RequestRecord(sent=0.0, error="HTTP 503"), RequestRecord(sent=0.0, unfinished=True)]
    summary = summarise(records)
    assert summary["requests"] == {"completed": 0, "failed": 1, "unfinished": 1}
    assert summary["ttft_ms"] is None and summary["output_tokens_per_second"] is None
