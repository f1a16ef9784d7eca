"""Ours beside stock in turns: tokens per second, and what held the step up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.measures import Counted, Measure
from leanmoe_bench.gpu.deadline import Deadline
from leanmoe_bench.gpu.models import PACKED
from leanmoe_bench.gpu.session import Row, Session
from leanmoe_bench.gpu.targets import target
from leanmoe_bench.ratio import paired_range

_STOCK = "stock"
_EXACT = ("level0", "budget_off", PACKED)
# A measure takes about as long as the one before it; the first is given this.
_FIRST_SECONDS = 12.0


@dataclass
class Timed:
    """One arm or case of a measure."""

    speeds: list[float] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)
    busy: float | None = None

    @property
    def distinct(self) -> float | None:
        """Experts read per layer and step, where they were counted."""
        counted = self.counted
        return counted.distinct / counted.steps if counted.steps and counted.distinct else None

    def seconds(self, measure: Measure) -> float:
        """Of one step."""
        return measure.step.rows / median(self.speeds)


def steps_of(measure: Measure) -> int:
    """Forward steps of one operation: a decode begins with the step of its prompts."""
    return 1 + measure.arguments["tokens"] if measure.operation == "decode" else 1


def compare(session: Session, cases: Sequence[Case], deadline: Deadline) -> Iterator[Row]:
    """One row for each measure and case; a case that ours refuses is one row with the reason."""
    taken = []
    for case in cases:
        refusal = _refusal(session, case)
        if refusal is None:
            taken.append(case)
        else:
            yield {"row": "speed", "case": case.name, "status": "cannot run", "reason": refusal}
    last = _FIRST_SECONDS
    for measure in session.settings.measures if taken else ():
        deadline.need(last, measure.name)
        start = time.monotonic()
        timed = _take(session, taken, measure)
        timing = time.monotonic() - start
        # Where time is short, the ratios of what follows come before the profiles of this.
        if deadline.left() > 2 * timing:
            _profile(session, taken, measure, timed)
        last = time.monotonic() - start
        for case in taken:
            yield _row(session, case, measure, timed)


def _refusal(session: Session, case: Case) -> str | None:
    """Why ours does not take the case, ``None`` if it does."""
    try:
        session.policy(case)
    except LeanMoEError as error:
        return str(error).splitlines()[0]
    return None


def _take(session: Session, cases: Sequence[Case], measure: Measure) -> dict[str, Timed]:
    """Rounds of all arms, forwards and backwards in turns; the first is to warm up."""
    timed = {_STOCK: Timed()} | {case.name: Timed() for case in cases}
    order: list[Case | None] = [None, *cases]
    for turn in range(1 + session.settings.rounds):
        for case in order if turn % 2 else reversed(order):
            one = timed[_STOCK if case is None else case.name]
            if case is None:
                speed, counted = session.run(False, measure, turn), Counted()
            else:
                session.policy(case)
                speed, counted = session.run_counted(measure, turn)
            if turn:
                one.speeds.append(speed)
                one.counted.add(counted)
    return timed


def _profile(
    session: Session, cases: Sequence[Case], measure: Measure, timed: dict[str, Timed]
) -> None:
    """The share of the step in which a kernel ran, for each arm and case."""
    for case in (None, *cases):
        one = timed[_STOCK if case is None else case.name]
        if case is not None:
            session.policy(case)
        kernels = session.kernels(case is not None, measure, turn=1)
        if kernels:
            busy = sum(us for _, us, _ in kernels) * 1e-6 / steps_of(measure)
            one.busy = round(busy / one.seconds(measure), 3)


def _row(session: Session, case: Case, measure: Measure, timed: dict[str, Timed]) -> Row:
    ours, stock = timed[case.name], timed[_STOCK]
    ratio = paired_range(ours.speeds, stock.speeds)
    model, graphs = session.model, session.settings.graphs
    wanted = target(model, case.name, measure.name, graphs)
    counted = ours.counted
    # Stock counts nothing; where nothing is skipped ours reads what stock reads.
    exact = next((timed[name].distinct for name in _EXACT if name in timed), None)
    row: dict[str, Any] = {
        "row": "speed",
        "case": case.name,
        "measure": measure.name,
        "ratio": round(ratio.middle, 3),
        "low": round(ratio.low, 3),
        "high": round(ratio.high, 3),
        "pairs": len(ours.speeds),
        "ours": round(median(ours.speeds), 2),
        "stock": round(median(stock.speeds), 2),
        "unit": "tokens/s",
        "skip_rate": round(counted.skipped / counted.routed, 4) if counted.routed else None,
        "distinct": None if ours.distinct is None else round(ours.distinct, 2),
        "ours_gpu_busy": ours.busy,
        "stock_gpu_busy": stock.busy,
        "ours_of_bandwidth": session.bytes_share(
            None if ours.distinct is None else session.expert_share * ours.distinct,
            ours.seconds(measure),
        ),
        "stock_of_bandwidth": session.bytes_share(exact, stock.seconds(measure)),
        "target": wanted,
        "met": None if wanted is None else ratio.middle >= wanted,
        **_budget_held(case, measure, ours),
    }
    return {name: value for name, value in row.items() if value is not None}


def _budget_held(case: Case, measure: Measure, ours: Timed) -> Row:
    """A budget holds where the tokens' top experts, which are always read, fit into it."""
    if case.union is None or ours.distinct is None or measure.step.rows > case.union.experts:
        return {}
    return {"passed": ours.distinct <= case.union.experts}
