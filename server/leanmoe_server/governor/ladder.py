"""The rungs the governor may stand on: from the operator's policy to the floor of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from leanmoe.curve import QualityCurve
from leanmoe.policy import EXACT, HUNDREDTHS, TOP1_ONLY, hundredths_of

# More would take long to climb, and each empties the cached prompts of those below.
MOST_RUNGS = 4


class Lever(StrEnum):
    """What a rung changes."""

    LEVELS = "levels"  # the level of requests that name none
    BUDGET = "budget"  # the most distinct experts per step and layer


@dataclass(frozen=True)
class Ladder:
    """What lies above the operator's policy, rising: levels, and falling budgets."""

    levels: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()

    def height(self, lever: Lever) -> int:
        return len(self.levels if lever is Lever.LEVELS else self.budgets)


def level_rungs(base: float, top: float, curve: QualityCurve | None) -> tuple[float, ...]:
    """At most ``MOST_RUNGS`` levels above ``base``, the last one ``top`` or what lies below it.

    The measured levels of the curve, thinned out evenly, each rounded down to what a request
    can carry; without a curve there is top-1 only, if that is within ``top``.
    """
    measured = [TOP1_ONLY] if curve is None else [*(point.level for point in curve.points), top]
    rounded = {hundredths_of(one) / HUNDREDTHS for one in measured if one <= top}
    above = sorted(one for one in rounded if one > max(base, EXACT))
    return tuple(_thinned(above))


def budget_rungs(most: int, least: int) -> tuple[int, ...]:
    """Budgets below ``most``, the experts of a layer, in even steps down to ``least``."""
    if not 0 < least < most:
        return ()
    span = most - least
    parts = min(MOST_RUNGS, span)
    return tuple(most - round(span * part / parts) for part in range(1, parts + 1))


def _thinned(rising: Sequence[float]) -> Sequence[float]:
    if len(rising) <= MOST_RUNGS:
        return rising
    last = len(rising) - 1
    return [rising[round(last * (i + 1) / MOST_RUNGS)] for i in range(MOST_RUNGS)]
