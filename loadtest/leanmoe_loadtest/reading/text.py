"""A load test's result for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanmoe_loadtest.reading import tables
from leanmoe_loadtest.reading.tables import Table


def show(result: Mapping[str, Any]) -> str:
    """A run, a comparison or a search, by what it holds."""
    if "rows" in result:
        return _comparison(result)
    return _saturation(result) if "steps" in result else _run(result)


def _run(summary: Mapping[str, Any]) -> str:
    counts = summary["requests"]
    head = [
        f"{summary['model']} at {summary['url']}, {tables.load_words(summary)}",
        f"requests: {counts['completed']} completed, {counts['failed']} failed, "
        f"{counts['unfinished']} unfinished",
        f"output: {tables.number(summary['output_tokens_per_second'])} tokens/s, "
        f"{tables.number(summary['requests_per_second'], '.2f')} requests/s over "
        f"{tables.number(summary['measured_seconds'])} s",
    ]
    parts = [
        tables.sweep(summary),
        tables.goodput(summary),
        tables.groups(summary, "by_level", "Level"),
        tables.groups(summary, "by_endpoint", "Endpoint"),
        tables.quality(summary),
        tables.server(summary),
        tables.errors(summary),
    ]
    return _joined(
        "\n".join(head),
        tables.latencies(summary).text(),
        *(f"{part.title}\n{part.text()}" for part in parts if part is not None),
        _notes(summary),
    )


def _comparison(found: Mapping[str, Any]) -> str:
    sides = [
        f"{side.upper()}: {', '.join(found[side]['folders'])} "
        f"({found[side]['completed']} requests, levels {'; '.join(found[side]['levels'])})"
        for side in "ab"
    ]
    table = tables.ratios(found)
    return _joined("\n".join(sides), f"{table.text()}\n{table.caption}", _notes(found))


def _saturation(found: Mapping[str, Any]) -> str:
    rate, fails = (tables.number(found[key], ".4g") for key in ("rate", "fails_at"))
    head = [
        f"{found['model']} at {found['url']}, goals {found['slo']}",
        f"highest rate that holds: {rate} requests/s (fails at {fails}); goodput there "
        f"{tables.number(found['goodput_per_second'], '.4g')} requests/s",
    ]
    table: Table = tables.steps(found)
    return _joined("\n".join(head), f"{table.text()}\n{table.caption}", _notes(found))


def _notes(result: Mapping[str, Any]) -> str:
    return "\n".join(f"note: {note}" for note in result["notes"])


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
