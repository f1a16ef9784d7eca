"""The time of one part: it is told to stop in time, and cut off where it hangs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class TooLateError(Exception):
    """What comes next would not end in time; the engines are as they were."""


class OutOfTime(BaseException):
    """The time is up in the middle of something; no ``except Exception`` may stop it."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


class Deadline:
    """Seconds of one part; ``clock`` counts them."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin, self._seconds = clock, clock(), seconds

    def taken(self) -> float:
        """Seconds since the part began."""
        return self._clock() - self._begin

    def left(self) -> float:
        """Seconds until the part must have ended."""
        return self._seconds - self.taken()

    def need(self, seconds: float, what: str) -> None:
        """Raise ``TooLateError`` where that much is not left for ``what``."""
        if self.left() < seconds:
            raise TooLateError(f"too little time for {what} and what follows")

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ``OutOfTime`` in the block when the time is up.

        In the main thread only, as an alarm interrupts whatever waits there.
        """
        previous = signal.signal(signal.SIGALRM, _ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 0.001))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
