"""Locust, headless, against the live server: what it counts is what the server counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.live_server import LiveServer


def finished(server: LiveServer) -> float:
    return server.metrics()["vllm:generation_tokens_total", ""]


def load(server: LiveServer, *options: str) -> dict[str, Any]:
    """Eight seconds of answers of 24 tokens."""
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", server.url, "--json"]
    limits = ["--duration", "8", "--max-tokens", "24", "--ignore-eos"]
    done = subprocess.run(
        [*command, *limits, *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_headless_run_agrees_with_the_server(exact_server: LiveServer) -> None:
    before = finished(exact_server)
    result = load(exact_server, "--users", "2")
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


def test_levels_quality_and_skipping_are_those_of_the_server(
    exact_server: LiveServer, tmp_path: Path
) -> None:
    """A mix of exact and top-1 requests, asked for quality too, judged from the stored run."""
    mix = ["--levels", "off:1,1:1", "--quality", "--slo", "e2e<120s", "-o", str(tmp_path / "run")]
    found = load(exact_server, "--arrivals", "constant:3", *mix, "--fail-if", "failed>0")
    by_level = found["by_level"]
    assert {name: one["applied_levels"] for name, one in by_level.items()} == {
        "off": [0.0],
        "1": [1.0],
    }
    assert found["goodput"]["share"] == 1.0
    # Of the mixed requests' routed assignments, those at top-1 skip one of two.
    assert 0 < found["server"]["skip_rate"] < 0.5
    # Two exact passes meet other batches, where a near tie of random weights may fall otherwise.
    noise = found["quality"]["noise"]["exact_match"]
    assert found["quality"]["levels"]["1"]["exact_match"] < noise
    assert noise > 0.9
    command = [sys.executable, "-m", "leanmoe.cli", "loadtest", "--read", str(tmp_path / "run")]
    again = subprocess.run(
        [*command, "--slo", "e2e<120s", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout) == found
