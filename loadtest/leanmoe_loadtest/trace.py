"""Traces: when requests came and how long they were, from a file somebody recorded.

JSON lines or CSV with a header. The time is ``timestamp`` (or ``TIMESTAMP``): a number, or in CSV
a date and time; lengths have the names that published traces give them, or are absent.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe_loadtest.arrivals import MOST_REQUESTS
from leanmoe_loadtest.jsonl import read_lines, read_text
from leanmoe_loadtest.lengths import MOST_TOKENS

UNITS = {"s": 1.0, "ms": 1e-3}
_TIME = ("timestamp", "TIMESTAMP")
_INPUT = ("input_tokens", "input_length", "prompt_tokens", "ContextTokens")
_OUTPUT = ("output_tokens", "output_length", "completion_tokens", "GeneratedTokens")


@dataclass(frozen=True)
class TraceRequest:
    """One request of a trace; ``seconds`` count from the first one."""

    seconds: float
    input_tokens: int | None = None
    output_tokens: int | None = None


def read_trace(path: Path, unit: str = "s", speed: float = 1.0) -> list[TraceRequest]:
    """The requests of ``path`` in order; times are divided by ``speed``.

    ``InputError`` names the line whose time is negative, earlier than the last or no number.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_lines(path)
    requests: list[TraceRequest] = []
    first = last = None
    for where, row in rows:
        time = _time(row, where) * UNITS[unit]
        if last is not None and time < last:
            raise InputError(
                f"{where}: the time {time:g} s is before the one above it ({last:g} s); "
                "sort the trace by time"
            )
        first, last = (time if first is None else first), time
        requests.append(
            TraceRequest(
                (time - first) / speed, _tokens(row, _INPUT, where), _tokens(row, _OUTPUT, where)
            )
        )
        if len(requests) > MOST_REQUESTS:
            raise InputError(f"{path} has more than {MOST_REQUESTS} requests; cut it")
    if not requests:
        raise InputError(f"{path} is a trace without a request")
    return requests


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(read_text(path).splitlines())
    for row in reader:
        yield f"{path}:{reader.line_num}", row


def _named(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _time(row: Mapping[str, Any], where: str) -> float:
    value = _named(row, _TIME)
    if value is None:
        raise InputError(f"{where} has no timestamp; a trace gives one for every request")
    try:
        time = float(value)
    except (TypeError, ValueError):
        time = _date(value, where)
    if isinstance(value, bool) or not math.isfinite(time) or time < 0:
        raise InputError(f"{where}: timestamp is {value!r}, expected a number of at least 0")
    return time


def _date(value: Any, where: str) -> float:
    try:
        # Traces of Azure have seven digits after the second, one more than a datetime takes.
        date = datetime.fromisoformat(str(value)[:26])
    except ValueError:
        raise InputError(
            f"{where}: timestamp is {value!r}, expected a number or a date such as "
            "2023-11-16 18:15:46"
        ) from None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _tokens(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> int | None:
    value = _named(row, names)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= MOST_TOKENS or number != int(number):
        raise InputError(f"{where}: a length is {value!r}, expected tokens from 0 to {MOST_TOKENS}")
    return max(int(number), 1)
