"""A load at several rates one after another: what each took, and where the curve bends.

The knee is the rate of greatest power: requests completed per second over their mean time, in
seconds (L. Kleinrock, Power and deterministic rules of thumb for probabilistic problems in computer
communications, ICC 1979). Below it a higher rate costs little time, above it time grows faster than
what gets done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanmoe_loadtest.arrivals import parse_arrivals
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import RunInfo
from leanmoe_loadtest.stats import present

LEAST_STEPS = 3
# Figures of some requests that ran for so many seconds.
FiguresOf = Callable[[Sequence[RequestRecord], float], dict[str, Any]]


def is_sweep(arrivals: str | None) -> bool:
    """Whether a load steps through enough rates for a curve."""
    return len(_rates(arrivals)) >= LEAST_STEPS


def _rates(arrivals: str | None) -> tuple[float, ...]:
    if arrivals is None or not arrivals.startswith("step:"):
        return ()
    return parse_arrivals(arrivals).numbers


def sweep(
    info: RunInfo, records: Sequence[RequestRecord], figures: FiguresOf
) -> dict[str, Any] | None:
    """Every rate with its figures, and the knee; ``None`` for a load of another kind."""
    if not is_sweep(info.arrivals):
        return None
    rates = _rates(info.arrivals)
    length = info.duration_seconds / len(rates)
    steps = []
    for number, rate in enumerate(rates):
        start = info.started + number * length
        own = [r for r in records if start <= (r.scheduled or 0.0) < start + length]
        if own:
            found = figures(own, _seconds(own, start, length))
            steps.append({"rate": rate, **found, "power": _power(found)})
    return {"step_seconds": length, "steps": steps, "knee": _knee(steps)}


def _seconds(records: Sequence[RequestRecord], start: float, length: float) -> float:
    """From the step's beginning to its end, or to its last answer where that came later."""
    ends = present(record.ended for record in records if record.completed)
    return max(length, *(end - start for end in ends)) if ends else length


def _power(found: dict[str, Any]) -> float | None:
    done, times = found["requests_per_second"], found["e2e_ms"]
    return done / (1e-3 * times["mean"]) if done and times and times["mean"] else None


def _knee(steps: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The step of greatest power; ``above`` where that is the fastest: the curve may bend later."""
    measured = sorted((s for s in steps if s["power"] is not None), key=lambda step: step["rate"])
    if len(measured) < LEAST_STEPS:
        return None
    best = max(measured, key=lambda step: step["power"])
    return {
        "rate": best["rate"],
        "requests_per_second": best["requests_per_second"],
        "above": best is measured[-1],
    }
