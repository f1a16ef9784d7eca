"""How long the workers have been silent, and from when on that means that they hang.

A worker answers between two engine steps. One that computes a long prefill, or has to wait for a
processor on a crowded machine, is late and busy; one that hangs is late and wants no processor.
While the process that asks has no processor itself, nobody is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from leanmoe.process.processor_time import (
    ProcessorSeconds,
    attentive_clock,
    processor_seconds,
)

# Past the time between two readings: what a step may take where nothing is wrong.
PATIENCE_SECONDS = 3.5
# A worker that computes may be later; past this it is taken to spin.
BUSY_SECONDS = 60.0
# One that waits for a processor longer than it runs computes at another's pace; past this nobody
# who asks it is served, whatever the reason.
STARVED_SECONDS = 600.0
_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Work:
    """What each of the engine's processes ran and waited for so far, and who is stopped."""

    seconds: dict[int, ProcessorSeconds]
    stopped: tuple[int, ...] = ()


def work_of(processes: Iterable[psutil.Process]) -> Work:
    """What ``processes`` did; one that ends meanwhile is left out."""
    seconds, stopped = {}, []
    for child in processes:
        try:
            if (found := processor_seconds(child.pid)) is not None:
                seconds[child.pid] = found
            if child.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                stopped.append(child.pid)
        except psutil.Error:
            continue
    return Work(seconds, tuple(stopped))


class Pulse:
    """Beats with every answer of the workers; ``problem`` once they have been silent too long.

    ``poll_seconds`` lie between two answers where all is well; ``who`` answers, and ``work`` says
    what it did meanwhile.
    """

    def __init__(
        self,
        poll_seconds: float,
        clock: Callable[[], float] = attentive_clock,
        work: Callable[[], Work] = lambda: Work({}),
        who: str = "the workers have",
    ) -> None:
        self._who = who
        self._limit = poll_seconds + PATIENCE_SECONDS
        self._clock = clock
        self._work = work
        self._last: float | None = None
        self._then = Work({})

    def beat(self) -> None:
        """The workers answered."""
        self._last, self._then = self._clock(), self._work()

    @property
    def silence(self) -> float:
        """Seconds since the last answer; 0 before the first, when nobody asked yet."""
        return 0.0 if self._last is None else self._clock() - self._last

    @property
    def problem(self) -> str | None:
        """Why the workers are taken to hang, or ``None``."""
        silence = self.silence
        if silence <= self._limit:
            return None
        now = self._work()
        if now.stopped:
            why = f"process {now.stopped[0]} is stopped"
        elif self._works(now, silence):
            return None
        else:
            why = "they hang" if self._who.endswith("have") else "it hangs"
        return f"{self._who} not answered for {silence:.0f} s: {why}"

    def _works(self, now: Work, silence: float) -> bool:
        """Whether one computed, or waited for a processor, most of a time that is not too long."""
        since = [
            now.seconds[pid] - before
            for pid, before in self._then.seconds.items()
            if pid in now.seconds
        ]
        return any(
            one.wanted >= _BUSY_SHARE * silence
            and silence <= (STARVED_SECONDS if one.waited > one.ran else BUSY_SECONDS)
            for one in since
        )
