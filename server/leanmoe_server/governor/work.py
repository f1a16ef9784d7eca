"""How long an engine step takes on a rung, remembered in a window that fades."""

from __future__ import annotations

from dataclasses import dataclass

from leanmoe_server.governor.observation import Observation

# Below this many steps a mean says more about chance than about a level.
LEAST_STEPS = 8
# Two rungs are compared only where their steps held nearly as many tokens.
ALIKE = 0.15
# How much more of all assignments must be skipped for two rungs to differ at all: answers that
# began, or waited, before a move keep their level.
APART = 0.03


@dataclass(frozen=True)
class Work:
    """Busy seconds, steps, tokens, and of the tokens' assignments the skipped share, added up."""

    seconds: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    skipped: float = 0.0

    def after(self, seen: Observation, window_seconds: float) -> Work:
        """With one more interval; what lies a window back counts for nearly nothing."""
        if not seen.steps or not seen.running:
            return self
        kept = max(0.0, 1.0 - seen.seconds / window_seconds)
        return Work(
            self.seconds * kept + seen.seconds,
            self.steps * kept + seen.steps,
            self.tokens * kept + seen.tokens,
            self.skipped * kept + seen.tokens * (seen.skipped_share or 0.0),
        )

    @property
    def tells(self) -> bool:
        return self.steps >= LEAST_STEPS and self.tokens > 0

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.steps

    def gain_over(self, other: Work) -> tuple[float, float] | None:
        """The share of a step's time saved against ``other``, at least and at most.

        How much of a step grows with its tokens is not known, from nothing to all of it; ``None``
        where the two are not alike enough for that to matter little.
        """
        if not (self.tells and other.tells):
            return None
        mine, theirs = self.tokens / self.steps, other.tokens / other.steps
        if abs(mine - theirs) > ALIKE * max(mine, theirs):
            return None
        if self.skipped / self.tokens < other.skipped / other.tokens + APART:
            return None
        least, most = sorted((1.0, mine / theirs))
        took = self.step_seconds / other.step_seconds
        return 1.0 - took / least, 1.0 - took / most


NOTHING = Work()
