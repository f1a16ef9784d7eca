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


def swept_run(rates=(1.0, 2.0, 4.0, 8.0), bend: float = 3.0) -> Run:
    """Twenty seconds at each rate; above ``bend`` a second, requests queue behind one another."""
    length, requests, free = 20.0, [], 0.0
    for step, rate in enumerate(rates):
        for number in range(int(rate * length)):
            due = step * length + number / rate
            starts = max(due, free)
            free = starts + 1 / bend
            fields = {"scheduled": START + due, "prompt": number % _PROMPTS}
            requests.append(record(due, starts - due + 0.2, [0.01] * 20, **fields))
    arrivals = f"step:{','.join(f'{rate:g}' for rate in rates)}"
    about = {"loop": "open", "users": None, "arrivals": arrivals, "seed": 0}
    return run_of(requests, duration_seconds=length * len(rates), **about)


def stored(folder: Path, run: Run) -> Path:
    folder.mkdir(parents=True)
    write_run(folder, run)
    return folder
