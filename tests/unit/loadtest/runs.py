"""Runs made up for tests: every timestamp is chosen, so every figure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import Run, RunInfo, Scrape, write_run

SMALL_RUN = Path(__file__).parent / "data" / "small-run"
START = 1_000_000.0
_PROMPTS = 16


def record(sent=0.0, ttft=0.1, gaps=(0.01, 0.01), tail=0.0, **fields) -> RequestRecord:
    chunks = list(START + sent + ttft + np.cumsum([0.0, *gaps]))
    return RequestRecord(
        sent=START + sent,
        chunks=chunks,
        ended=chunks[-1] + tail,
        **{"completion_tokens": len(chunks), "prompt_tokens": 10, "prompt": 0, **fields},
    )


def run_of(requests: list[RequestRecord], metrics: list[Scrape] | None = None, **info) -> Run:
    known = {
        "url": "http://127.0.0.1:8000",
        "model": "tiny",
        "endpoint": "chat",
        "loop": "closed",
        "users": 4,
        "duration_seconds": 10.0,
        "prompts": "builtin",
        "prompt_count": 16,
        "seed": 0,
        "settings": {"users": 4},
        "started": START,
        "ended": START + 10.0,
    }
    return Run(RunInfo(**{**known, **info}), requests, metrics or [])


def drawn_run(draw: int, scale: float = 1.0, count: int = 200, **info) -> Run:
    """A closed loop of one user whose latencies are drawn; prompts differ in their cost."""
    random = np.random.default_rng(draw)
    cost = np.random.default_rng(99).uniform(0.5, 1.5, _PROMPTS)
    requests, at = [], 0.0
    for number in range(count):
        prompt = number % _PROMPTS
        ttft = scale * cost[prompt] * float(random.uniform(0.09, 0.11))
        gaps = scale * random.uniform(0.009, 0.011, 8)
        requests.append(record(at, ttft, gaps, prompt=prompt))
        at += ttft + float(gaps.sum()) + 0.001
    return run_of(requests, **info)


def stored(folder: Path, run: Run) -> Path:
    folder.mkdir(parents=True)
    write_run(folder, run)
    return folder
