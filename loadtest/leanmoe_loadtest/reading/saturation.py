"""The highest rate of requests whose goodput holds: by doubling, then by halving the gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import Any

# A step that was sent this late (p95) did not put its rate on the server.
LATE_MS = 50.0
_SLOWEST = 2.0**-10  # of the first rate: below this the search gives up


@dataclass(frozen=True)
class Step:
    """One run at one rate."""

    rate: float
    share: float | None
    share_low: float | None
    share_high: float | None
    completed: int
    failed: int
    late_p95_ms: float | None
    holds: bool
    late: bool
    seconds: float
    summary: dict[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """Where a search starts and what ends it."""

    first_rate: float = 1.0
    target: float = 0.95
    precision: float = 0.05
    most_steps: int = 12
    most_seconds: float = 1800.0


def step_of(rate: float, summary: dict[str, Any], target: float, seconds: float) -> Step:
    """Judge one run's summary: its share must reach ``target``, and it must have been on time."""
    met, late = summary["goodput"], summary["late_ms"]
    share = None if met is None else met["share"]
    is_late = late is not None and late["p95"] > LATE_MS
    return Step(
        rate=rate,
        share=share,
        share_low=None if met is None else met["share_low"],
        share_high=None if met is None else met["share_high"],
        completed=summary["requests"]["completed"],
        failed=summary["requests"]["failed"],
        late_p95_ms=None if late is None else late["p95"],
        holds=share is not None and share >= target and not is_late,
        late=is_late,
        seconds=seconds,
        summary=summary,
    )


class Search:
    """Steps taken so far and the rate to try next."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.steps: list[Step] = []

    @property
    def low(self) -> float | None:
        """The highest rate that held and never failed."""
        held = [s.rate for s in self.steps if s.holds and (not self.high or s.rate < self.high)]
        return max(held, default=None)

    @property
    def high(self) -> float | None:
        """The lowest rate that failed, be it once."""
        return min((step.rate for step in self.steps if not step.holds), default=None)

    @property
    def confirmed(self) -> bool:
        """Whether the highest rate held twice."""
        return sum(step.rate == self.low for step in self.steps) > 1

    def next_rate(self) -> float | None:
        """``None`` when there is nothing left to find out."""
        low, high = self.low, self.high
        if low is None and high is None:
            return self.bounds.first_rate
        if high is None:
            return 2 * (low or 0.0)
        if low is None:
            slower = high / 2
            return slower if slower >= _SLOWEST * self.bounds.first_rate else None
        if high / low > 1 + self.bounds.precision:
            return sqrt(low * high)
        # The winner of several draws was lucky more often than not: let it hold again.
        return None if self.confirmed else low


def find_saturation(
    measure: Callable[[float, int], Step],
    bounds: Bounds,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run ``measure(rate, number)`` until the rate is known or the bounds are reached."""
    search, start, ended = Search(bounds), clock(), "found"
    while (rate := search.next_rate()) is not None:
        if len(search.steps) >= bounds.most_steps:
            ended = "steps used up"
            break
        longest = max((step.seconds for step in search.steps), default=0.0)
        if search.steps and clock() - start + longest > bounds.most_seconds:
            ended = "time used up"
            break
        try:
            search.steps.append(measure(rate, len(search.steps)))
        except KeyboardInterrupt:
            ended = "interrupted"
            break
    return _result(search, ended)


def _result(search: Search, ended: str) -> dict[str, Any]:
    best = [step for step in search.steps if step.rate == search.low]
    late = [step.rate for step in search.steps if step.late]
    steps = [{k: v for k, v in asdict(s).items() if k != "summary"} for s in search.steps]
    return {
        "rate": search.low,
        "fails_at": search.high,
        "goodput_per_second": best[-1].summary["goodput"]["requests_per_second"] if best else None,
        "confirmed": search.confirmed if best else False,
        "ended": ended,
        "target": search.bounds.target,
        "precision": search.bounds.precision,
        "steps": steps,
        "notes": list(_notes(search, ended, late)),
    }


def _notes(search: Search, ended: str, late: list[float]) -> Iterator[str]:
    if search.low is None:
        yield "No rate that was tried held the goodput."
    if late and min(late) == search.high:
        yield (
            f"At {min(late):.3g} requests per second the generator itself fell behind: the server "
            "may take more. Use more workers."
        )
    if ended != "found":
        yield f"The search ended early ({ended}): the rate lies between those two."
    elif search.low is not None and not search.confirmed:
        yield "The rate held once only."
