"""Which of the timed tiles is taken, and what it gains over vLLM's own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from leanmoe.tuned_tables import Tiles
from leanmoe_bench.ratio import Ratio, paired_ratio

# How much slower at level 0 the tiles may be that are faster once assignments are gone.
TOLERANCE = 0.01


class Kept(StrEnum):
    """Which of a token's routed assignments are computed."""

    ALL = "all"
    TOP1 = "top1"


@dataclass(frozen=True)
class Timed:
    """Seconds of some tiles, a number per round."""

    tiles: Tiles
    seconds: dict[Kept, tuple[float, ...]]

    def middle(self, kept: Kept) -> float:
        return median(self.seconds[kept])


def choose(timed: Sequence[Timed]) -> Timed:
    """Among those within a hundredth of the fastest at level 0, the fastest with top-1 alone.

    A captured graph keeps its tiles at every level, so one choice serves all of them.
    """
    limit = min(one.middle(Kept.ALL) for one in timed) * (1 + TOLERANCE)
    near = [one for one in timed if one.middle(Kept.ALL) <= limit]
    return min(near, key=lambda one: (one.middle(Kept.TOP1), one.middle(Kept.ALL)))


def gain(chosen: Timed, own: Timed, kept: Kept) -> Ratio:
    """How many times as fast ``chosen`` is, round by round."""
    return paired_ratio(own.seconds[kept], chosen.seconds[kept])
