"""A deadline for the whole run: a part that would pass it is cut off, and says so."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# What ending an engine that was cut off may take.
CLOSING_SECONDS = 35.0


class OutOfTime(BaseException):
    """The time is up, or too little is left to begin; no ``except Exception`` may stop it."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


class Budget:
    """Seconds of the run; ``clock`` counts them."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        """Seconds left for work, the ending of engines apart."""
        return self._end - self._clock() - CLOSING_SECONDS

    @contextmanager
    def part(self, needs: float) -> Iterator[None]:
        """Raise ``OutOfTime`` where less than ``needs`` seconds are left, or when they run out.

        In the main thread only, as an alarm interrupts whatever waits there.
        """
        left = self.left()
        if left < needs:
            raise OutOfTime
        previous = signal.signal(signal.SIGALRM, _ring)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
