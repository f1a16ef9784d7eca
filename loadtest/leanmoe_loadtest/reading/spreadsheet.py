"""``--csv``: the figures as one table, a row per part of a run, ratio of a comparison, or step."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leanmoe_loadtest.stats import LATENCIES, PERCENTILES

_POINTS = ("n", "mean", *(f"p{p}" for p in PERCENTILES), "max")
_GOODPUT = ("share", "share_low", "share_high", "requests_per_second")
_COUNTS = ("completed", "failed", "unfinished")
_RATES = ("error_rate", "requests_per_second", "output_tokens_per_second")
_PARTS = {"endpoint": "by_endpoint", "level": "by_level"}
_FORMULA = ("=", "+", "-", "@")
Row = Mapping[str, Any]


def as_csv(result: Mapping[str, Any]) -> str:
    """A run, a comparison or a search, by what it holds."""
    if "rows" in result:
        return _written(result["rows"])
    return _written(result["steps"] if "steps" in result else list(_parts(result)))


def _parts(summary: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("run", "", summary)
    for kind, key in _PARTS.items():
        for name, figures in summary[key].items():
            yield _row(kind, name, figures)
    for step in (summary["sweep"] or {}).get("steps", ()):
        yield _row("rate", step["rate"], step)


def _row(kind: str, name: object, figures: Mapping[str, Any]) -> Row:
    met = figures["goodput"] or {}
    return {
        "part": kind,
        "name": name,
        **{key: figures["requests"][key] for key in _COUNTS},
        **{key: figures[key] for key in _RATES},
        **{
            f"{latency}_{point}": (figures[latency] or {}).get(point)
            for latency in LATENCIES
            for point in _POINTS
        },
        **{f"goodput_{key}": met.get(key) for key in _GOODPUT},
    }


def _written(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    """Empty where nothing was measured; a text that a spreadsheet would compute stays a text."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
