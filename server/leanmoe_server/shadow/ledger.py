"""What shadow replays found at one level, and when that is surely too much."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev

from leanmoe_server.shadow.estimate import Distance

# Each block of so many answers is judged once: looking after every answer would find a breach by
# chance sooner or later.
BLOCK = 16
# Above the 0.995 quantile of Student's t with 15 degrees of freedom. Divergences lie skewed to
# the right, for which a lower bound of this kind errs on the cautious side.
_WIDTH = 3.0
_SHOWN = 256


@dataclass
class Ledger:
    """Distances of served answers from exact, and of exact from exact, one per answer."""

    level: float
    shown: deque[Distance] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    noise: deque[Distance] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    block: list[float] = field(default_factory=list)

    def add(self, found: Distance) -> float | None:
        """The lower bound of the mean KLD, above noise, each time a block is full."""
        self.shown.append(found)
        self.block.append(found.kld)
        if len(self.block) < BLOCK:
            return None
        block, self.block = self.block, []
        return max(0.0, fmean(block) - _WIDTH * stdev(block) / sqrt(BLOCK) - self.noise_kld)

    @property
    def kld(self) -> float | None:
        return fmean(one.kld for one in self.shown) if self.shown else None

    @property
    def top1(self) -> float | None:
        return fmean(one.top1 for one in self.shown) if self.shown else None

    @property
    def covered(self) -> float | None:
        return fmean(one.covered for one in self.shown) if self.shown else None

    @property
    def noise_kld(self) -> float:
        return fmean(one.kld for one in self.noise) if self.noise else 0.0

    @property
    def noise_top1(self) -> float:
        return fmean(one.top1 for one in self.noise) if self.noise else 1.0
