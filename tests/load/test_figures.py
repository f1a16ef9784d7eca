"""The figures on ``docs/loadtest.md`` are those of the recorded run, which holds what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leanmoe_bench.load.command import MOST_ADDED_MS, MOST_OFF_MS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    text = (ROOT / "benchmarks" / "results" / "load.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["load"])


def rows(first: str) -> list[list[str]]:
    lines = (ROOT / "docs" / "loadtest.md").read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    table = [line for line in lines[start:] if line.startswith("|") or not line]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table[: table.index("") if "" in table else None]
    ]


def test_reported_percentiles_are_within_two_milliseconds(recorded: dict[str, Any]) -> None:
    shown = [(row[0], row[-1]) for row in rows("load")]
    assert shown == [(one["load"], f"{one['most_off_ms']:.2f}") for one in recorded["truth"]]
    assert max(one["most_off_ms"] for one in recorded["truth"]) <= MOST_OFF_MS


def test_five_hundred_events_per_second_add_less_than_five_milliseconds(
    recorded: dict[str, Any],
) -> None:
    capacity = recorded["capacity"]
    assert rows("token events per second") == [
        [
            f"{one['events_per_second']:,.0f}",
            str(one["processes"]),
            f"{one['client_cores']:.2f}",
            f"{one['server_itl_p99_ms']:.2f}",
            f"{one['added_ms']:+.2f}",
        ]
        for one in capacity
    ]
    assert max(one["events_per_second"] for one in capacity) >= 500
    assert all(one["added_ms"] < MOST_ADDED_MS for one in capacity)
