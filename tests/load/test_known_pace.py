"""``leanmoe loadtest`` against a server whose every timestamp is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from leanmoe_bench.load.known_server import Pace, known_server
from tests.load.loadtest_command import report, run

# What a busy machine may add between the server's clock reading and the client's, by percentile;
# well under what a wrong anchor would: the first token comes after 400 ms, the others every 100.
# How close they are on a quiet machine is measured by `leanmoe bench load`.
SLACK_MS = {50: 30.0, 90: 150.0}
SLOW = Pace(ttft_ms=[400.0], itl_ms=[100.0])


def test_percentiles_are_those_the_server_recorded() -> None:
    with known_server(SLOW) as server:
        result = report(server.url, "--users", "3", "--duration", "6", "--max-tokens", "8")
        served = server.truth().served
    assert result["model"] == "known"
    assert result["requests"] == {"completed": len(served), "failed": 0, "unfinished": 0}
    assert len(served) >= 9
    ttft = [s.sent[0] - s.received for s in served]
    itl = [after - before for s in served for before, after in pairwise(s.sent)]
    e2e = [s.ended - s.received for s in served]
    tpot = [(s.ended - s.sent[0]) / 7 for s in served]
    truth = {"ttft_ms": ttft, "itl_ms": itl, "e2e_ms": e2e, "tpot_ms": tpot}
    for name, seconds in truth.items():
        assert result[name]["n"] == len(seconds)
        for p, slack in SLACK_MS.items():
            expected = 1e3 * float(np.percentile(seconds, p))
            assert result[name][f"p{p}"] == pytest.approx(expected, abs=slack), (name, p)
    # Gaps cancel out what the way to the client adds, so their mean is tight.
    assert result["itl_ms"]["mean"] == pytest.approx(1e3 * float(np.mean(itl)), rel=0.1)
    # A client cannot see a token before it was sent.
    assert result["ttft_ms"]["p50"] >= 1e3 * float(np.percentile(ttft, 50)) - 5.0


def test_tokens_and_throughput_add_up() -> None:
    with known_server(Pace()) as server:
        result = report(server.url, "--users", "2", "--duration", "3", "--max-tokens", "8")
        served = server.truth().served
    span = max(s.ended for s in served) - min(s.received for s in served)
    assert result["output_tokens"] == 8 * len(served)
    assert result["prompt_tokens"] == 5 * len(served)
    assert result["tokens_counted_by_server"] is True
    assert result["output_tokens_per_second"] == pytest.approx(8 * len(served) / span, rel=0.1)


def test_errors_are_counted_and_not_averaged_in() -> None:
    with known_server(Pace(fail_every=3)) as server:
        result = report(server.url, "--users", "2", "--duration", "3")
        truth = server.truth()
    assert result["errors"] == {"HTTP 503": truth.refused}
    assert result["requests"]["failed"] == truth.refused > 0
    assert result["ttft_ms"]["n"] == result["requests"]["completed"] == len(truth.served)


def test_the_number_of_requests_is_bounded() -> None:
    with known_server(Pace(ttft_ms=[0.0], itl_ms=[0.0])) as server:
        result = report(server.url, "--users", "4", "--duration", "60", "--max-requests", "12")
        assert len(server.truth().payloads) == 12
    assert sum(result["requests"].values()) == 12


def test_the_payload_is_a_streamed_english_chat() -> None:
    with known_server(Pace()) as server:
        report(server.url, "--users", "1", "--duration", "1", "--max-tokens", "5", "--ignore-eos")
        payload = server.truth().payloads[0]
    assert payload["stream"] is True and payload["max_tokens"] == 5 and payload["ignore_eos"]
    assert payload["messages"][0]["role"] == "user"


def test_broken_streams_only_is_a_failure_with_one_sentence() -> None:
    with known_server(Pace(drop_after=3)) as server:
        done = run(server.url, "--users", "1", "--duration", "1")
    assert done.returncode == 1
    assert "the stream ended without [DONE]" in done.stderr
    assert done.stdout == ""


def test_the_table_names_every_latency() -> None:
    with known_server(Pace()) as server:
        done = run(server.url, "--users", "1", "--duration", "1")
    assert done.returncode == 0
    assert [word for word in ("TTFT", "ITL", "TPOT", "E2E") if word in done.stdout] == [
        "TTFT",
        "ITL",
        "TPOT",
        "E2E",
    ]
