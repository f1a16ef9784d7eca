"""Goals for a single request, such as ``ttft<1s,itl_p95<50ms,e2e<10s``, and who met them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanmoe.errors import InputError
from leanmoe.stats import wilson
from leanmoe_loadtest.reading.conditions import Condition, parse_condition
from leanmoe_loadtest.record import RequestRecord

EXAMPLE = "ttft<1s,itl_p95<50ms,e2e<10s"
_ITL_PERCENTILES = (50, 90, 95, 99)


def _itl(reduce: Callable[[Sequence[float]], Any]) -> Callable[[RequestRecord], float | None]:
    def measure(record: RequestRecord) -> float | None:
        gaps = record.itl_seconds
        return float(reduce(gaps)) if gaps else None

    return measure


def _percentile(p: int) -> Callable[[Sequence[float]], Any]:
    return lambda gaps: np.percentile(gaps, p)


def _ttft(record: RequestRecord) -> float | None:
    # Whoever got no text waited for it until the end.
    return record.e2e_seconds if record.ttft_seconds is None else record.ttft_seconds


# Seconds of one finished request; None, such as the gaps of a single token, breaks no goal.
MEASURES: Mapping[str, Callable[[RequestRecord], float | None]] = {
    "ttft": _ttft,
    "tpot": lambda record: record.tpot_seconds,
    "e2e": lambda record: record.e2e_seconds,
    "itl": _itl(max),
    "itl_max": _itl(max),
    "itl_mean": _itl(np.mean),
    **{f"itl_p{p}": _itl(_percentile(p)) for p in _ITL_PERCENTILES},
}


@dataclass(frozen=True)
class Slo:
    """Goals that a request meets only all together."""

    conditions: tuple[Condition, ...]

    @property
    def text(self) -> str:
        return ",".join(condition.text for condition in self.conditions)

    def broken(self, record: RequestRecord) -> list[str]:
        """The goals that a finished request broke."""
        return [one.text for one in self.conditions if _breaks(one, MEASURES[one.name](record))]

    def already_broken(self, record: RequestRecord, until: float) -> list[str]:
        """The goals that a request cut off at ``until`` had broken by then, however it went on."""
        waited = until - record.sent
        first = waited if record.ttft_seconds is None else record.ttft_seconds
        longest = max(record.itl_seconds, default=None)
        least = {"ttft": first, "e2e": waited, "itl": longest, "itl_max": longest}
        return [one.text for one in self.conditions if _breaks(one, least.get(one.name))]


def _breaks(condition: Condition, seconds: float | None) -> bool:
    return seconds is not None and not condition.holds(seconds)


def parse_slo(text: str) -> Slo:
    """Read ``--slo``; ``InputError`` says what is wrong with it."""
    kinds = dict.fromkeys(MEASURES, "time")
    parts = [part for part in text.split(",") if part.strip()]
    conditions = tuple(parse_condition(part, kinds, "--slo", EXAMPLE) for part in parts)
    if not conditions:
        raise InputError(f"--slo is empty; expected something like {EXAMPLE!r}")
    for one in conditions:
        if not one.operator.startswith("<"):
            raise InputError(f"--slo {one.text!r}: a goal is an upper limit; write {one.name}<…")
    return Slo(conditions)


def goodput(
    records: Sequence[RequestRecord], slo: Slo, until: float, span: float | None
) -> dict[str, Any] | None:
    """Share and rate of requests that met every goal; ``None`` where none was decided.

    A failed request met none. One cut off at ``until`` counts as missed if it was
    too late already, and not at all otherwise. ``span`` is in seconds.
    """
    met, undecided = 0, 0
    broken: Counter[str] = Counter()
    missed = 0
    for record in records:
        reasons = _verdict(record, slo, until)
        if reasons is None:
            undecided += 1
        elif reasons:
            missed += 1
            broken.update(reasons)
        else:
            met += 1
    if not met + missed:
        return None
    low, high = wilson(met, met + missed)
    return {
        "slo": slo.text,
        "share": met / (met + missed),
        "share_low": low,
        "share_high": high,
        "requests_per_second": met / span if span else None,
        "met": met,
        "missed": missed,
        "undecided": undecided,
        "broken": {name: broken[name] for name in (*_texts(slo), "failed") if broken[name]},
    }


def _texts(slo: Slo) -> list[str]:
    return [condition.text for condition in slo.conditions]


def _verdict(record: RequestRecord, slo: Slo, until: float) -> list[str] | None:
    """What was broken; ``None`` where nobody can tell."""
    if record.completed:
        return slo.broken(record)
    if record.error is not None:
        return ["failed"]
    return slo.already_broken(record, until) or None
