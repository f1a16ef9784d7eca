"""Which levels applied while an answer was made: its own, or the engine's and each change of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from leanmoe.policy import EXACT


class LevelSpan:
    """The first, the last and the highest level of one answer."""

    def __init__(self, level: float) -> None:
        self.first = self.last = self.highest = level

    def change(self, level: float) -> None:
        """The engine's level becomes another while the answer is made."""
        self.last, self.highest = level, max(self.highest, level)

    def describe(self) -> dict[str, float]:
        """For ``usage``: the highest, and from where to where it changed, if it did."""
        if self.first == self.last == self.highest:
            return {"level": self.highest}
        return {"level": self.highest, "from": self.first, "to": self.last}


class LevelSpans:
    """The answers that follow the engine's level and are being made now."""

    def __init__(self) -> None:
        self._level = EXACT
        self._open: set[LevelSpan] = set()

    def change(self, level: float) -> None:
        """Before the engine's level changes: an answer may be computed at either from now on."""
        self._level = level
        for span in self._open:
            span.change(level)

    @contextmanager
    def follow(self) -> Iterator[LevelSpan]:
        """An answer at the engine's level, while it is made."""
        span = LevelSpan(self._level)
        self._open.add(span)
        try:
            yield span
        finally:
            self._open.discard(span)
