"""What a process ran and what it waited for a processor: on a crowded machine late is not idle."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROCESSES = Path("/proc")


@dataclass(frozen=True)
class ProcessorSeconds:
    """Seconds on a processor, and seconds in which a thread could have run and had none."""

    ran: float = 0.0
    waited: float = 0.0

    @property
    def wanted(self) -> float:
        """Both: what tells work from sleep."""
        return self.ran + self.waited

    def __add__(self, other: ProcessorSeconds) -> ProcessorSeconds:
        return ProcessorSeconds(self.ran + other.ran, self.waited + other.waited)

    def __sub__(self, other: ProcessorSeconds) -> ProcessorSeconds:
        return ProcessorSeconds(self.ran - other.ran, self.waited - other.waited)


def processor_seconds(pid: int) -> ProcessorSeconds | None:
    """Of the threads that live in a process; ``None`` when it is gone.

    A kernel that keeps no schedstat knows of no waiting.
    """
    found = [_of_thread(file) for file in (_PROCESSES / str(pid) / "task").glob("*/schedstat")]
    known = [seconds for seconds in found if seconds is not None]
    if known:
        return sum(known, ProcessorSeconds())
    fields = _stat_fields(pid)
    return None if fields is None else ProcessorSeconds(_ticks(fields[11:13]))


def session_seconds(leader: int) -> ProcessorSeconds:
    """Of a session's living processes, and of their children that were waited for."""
    total = ProcessorSeconds()
    for entry in _PROCESSES.iterdir():
        fields = _stat_fields(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and int(fields[3]) == leader:
            own = processor_seconds(int(entry.name)) or ProcessorSeconds()
            total += ProcessorSeconds(_ticks(fields[11:15]), own.waited)
    return total


def attentive_clock() -> float:
    """The monotonic clock less what this process's main thread waited for a processor.

    Who watches others hears nothing in such a time, and must not take that for their silence.
    """
    own = _of_thread(_PROCESSES / "self" / "schedstat") or ProcessorSeconds()
    return time.monotonic() - own.waited


def _of_thread(schedstat: Path) -> ProcessorSeconds | None:
    try:
        ran, waited, _ = schedstat.read_text().split()
    except (OSError, ValueError):  # gone meanwhile, or a kernel that does not count
        return None
    return ProcessorSeconds(int(ran) / 1e9, int(waited) / 1e9)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` after the name, which may hold spaces and brackets."""
    try:
        text = (_PROCESSES / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _ticks(fields: list[str]) -> float:
    return sum(map(int, fields)) / _TICKS
