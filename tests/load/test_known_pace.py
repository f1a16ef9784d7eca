"""``leanmoe loadtest`` against a server whose every timestamp is known."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import psutil
import pytest

from tests.integration.live_server import wait_for
from tests.load.known_server import KnownServer, Pace, known_server

# What a busy machine may add between the server's clock reading and the client's, by percentile;
# well under what a wrong anchor would: the first token comes after 400 ms, the others every 100.
SLACK_MS = {50: 30.0, 90: 150.0}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def report(server: KnownServer, *arguments: str) -> dict:
    done = run(server.url, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_percentiles_are_those_the_server_recorded() -> None:
    with known_server(Pace(ttft_seconds=0.4, itl_seconds=0.1)) as server:
        result = report(server, "--users", "3", "--duration", "6", "--max-tokens", "8")
    assert result["model"] == "known"
    assert result["requests"] == {
        "completed": len(server.served),
        "failed": 0,
        "unfinished": 0,
    }
    assert len(server.served) >= 9
    ttft = [s.sent[0] - s.received for s in server.served]
    itl = [after - before for s in server.served for before, after in pairwise(s.sent)]
    e2e = [s.ended - s.received for s in server.served]
    tpot = [(s.ended - s.sent[0]) / 7 for s in server.served]
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
        result = report(server, "--users", "2", "--duration", "3", "--max-tokens", "8")
    served = len(server.served)
    span = max(s.ended for s in server.served) - min(s.received for s in server.served)
    assert result["output_tokens"] == 8 * served
    assert result["prompt_tokens"] == 5 * served
    assert result["tokens_counted_by_server"] is True
    assert result["output_tokens_per_second"] == pytest.approx(8 * served / span, rel=0.1)


def test_errors_are_counted_and_not_averaged_in() -> None:
    with known_server(Pace(fail_every=3)) as server:
        result = report(server, "--users", "2", "--duration", "3")
    assert result["errors"] == {"HTTP 503": server.refused}
    assert result["requests"]["failed"] == server.refused > 0
    assert result["ttft_ms"]["n"] == result["requests"]["completed"] == len(server.served)


def test_the_number_of_requests_is_bounded() -> None:
    with known_server(Pace(ttft_seconds=0.0, itl_seconds=0.0)) as server:
        result = report(server, "--users", "4", "--duration", "60", "--max-requests", "12")
        assert len(server.payloads) == 12
    assert sum(result["requests"].values()) == 12


def test_the_payload_is_a_streamed_english_chat() -> None:
    with known_server(Pace()) as server:
        report(server, "--users", "1", "--duration", "1", "--max-tokens", "5", "--ignore-eos")
    payload = server.payloads[0]
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:9"], "no server answers"),
        (["ftp://host"], "expected http://host:port"),
        (["http://127.0.0.1:9", "--users", "0"], "--users is 0"),
        (["http://127.0.0.1:9", "--duration", "-1"], "--duration is -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_stopped_load_leaves_no_generator_behind() -> None:
    with known_server(Pace()) as server:
        command = [sys.executable, "-m", "leanmoe.cli", "loadtest", server.url, "--duration", "600"]
        load = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: server.served, bool, seconds=60)
        family = psutil.Process(load.pid).children(recursive=True)
        assert server.served and family
        load.terminate()
        _, said = load.communicate(timeout=60)
    assert load.returncode == 130 and "interrupted" in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.parametrize("url", ["http://[", "ftp://host", "host:8000", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    done = run(url)
    assert done.returncode == 2 and "expected http://host:port" in done.stderr
