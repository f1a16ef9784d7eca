"""Locust, headless, against the live server: what it counts is what the server counted."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.integration.live_server import LiveServer


def finished(server: LiveServer) -> float:
    return server.metrics()["vllm:generation_tokens_total", ""]


def test_a_headless_run_agrees_with_the_server(exact_server: LiveServer) -> None:
    before = finished(exact_server)
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", exact_server.url, "--json"]
    limits = ["--users", "2", "--duration", "8", "--max-tokens", "24", "--ignore-eos"]
    done = subprocess.run(
        [*command, *limits], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    requests = result["requests"]
    assert requests["completed"] >= 2
    assert (requests["failed"], requests["unfinished"], result["errors"]) == (0, 0, {})
    assert result["model"] == exact_server.model
    assert result["output_tokens"] == 24 * requests["completed"]
    assert result["output_tokens"] == finished(exact_server) - before
    assert result["tokens_counted_by_server"] is True
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
        figures = result[name]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p95"] <= figures["p99"], name
    assert result["ttft_ms"]["p50"] < result["e2e_ms"]["p50"]
    assert result["output_tokens_per_second"] > 0
