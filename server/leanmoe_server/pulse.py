"""How long the workers have been silent, and from when on that means that they hang.

A worker answers between two engine steps. One that computes a long prefill, or has to wait for a
processor on a crowded machine, is late and busy; one that hangs is late and wants no processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

# Past the time between two readings: what a step may take where nothing is wrong.
PATIENCE_SECONDS = 3.5
# A worker that computes may be later; past this it is taken to spin.
BUSY_SECONDS = 60.0
_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Work:
    """Of the engine's processes: seconds in which each ran or wanted to, and who is stopped."""

    seconds: dict[int, float]
    stopped: tuple[int, ...] = ()


def work_of(processes: Iterable[psutil.Process]) -> Work:
    """What ``processes`` ran; one that ends meanwhile is left out."""
    seconds, stopped = {}, []
    for child in processes:
        try:
            seconds[child.pid] = _wanted_seconds(child)
            if child.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                stopped.append(child.pid)
        except psutil.Error:
            continue
    return Work(seconds, tuple(stopped))


def _wanted_seconds(process: psutil.Process) -> float:
    """What its threads ran and waited for a processor, where the kernel keeps that (schedstat)."""
    try:
        files = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        fields = [file.read_text().split() for file in files]
    except OSError:
        fields = []
    if fields:
        return sum(int(ran) + int(waited) for ran, waited, _ in fields) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)


class Pulse:
    """Beats with every answer of the workers; ``problem`` once they have been silent too long.

    ``poll_seconds`` lie between two answers where all is well; ``who`` answers, and ``work`` says
    what it did meanwhile.
    """

    def __init__(
        self,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
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
        elif silence <= BUSY_SECONDS and self._is_busy(now, silence):
            return None
        else:
            why = "they hang" if self._who.endswith("have") else "it hangs"
        return f"{self._who} not answered for {silence:.0f} s: {why}"

    def _is_busy(self, now: Work, silence: float) -> bool:
        used = [
            now.seconds[pid] - before
            for pid, before in self._then.seconds.items()
            if pid in now.seconds
        ]
        return max(used, default=0.0) >= _BUSY_SHARE * silence
