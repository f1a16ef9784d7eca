"""How long to wait for a process that works: by what it computes, not by the clock alone."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# A start of a server takes one to three minutes of computing, on however slow a machine.
MOST_CPU_SECONDS = 1800.0
# One that waits for nobody still polls: about 0.1 s of computing in such a time.
IDLE_SECONDS, _IDLE_CPU_SECONDS = 300.0, 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Patience:
    """Waits for the processes of a session while they get on.

    ``leader`` is the process id of the session's first. Beside four busy processes a start takes
    five times as long and computes as much as ever, which is why no fixed time is right.
    """

    def __init__(
        self,
        leader: int,
        *,
        idle_seconds: float = IDLE_SECONDS,
        most_cpu_seconds: float = MOST_CPU_SECONDS,
    ) -> None:
        self._leader = leader
        self._idle, self._most = idle_seconds, most_cpu_seconds
        self._begun = self._seen = session_cpu_seconds(leader)
        self._since = time.monotonic()

    def lost(self) -> str | None:
        """Why waiting longer is of no use, ``None`` while it is."""
        used = session_cpu_seconds(self._leader)
        if used - self._begun > self._most:
            return f"it has computed for {used - self._begun:.0f} s and is not done"
        if used - self._seen >= _IDLE_CPU_SECONDS:
            self._seen, self._since = used, time.monotonic()
        if time.monotonic() - self._since > self._idle:
            return f"it has computed nothing for {self._idle:.0f} s"
        return None


def session_cpu_seconds(leader: int) -> float:
    """CPU seconds of a session's living processes and of their children that were waited for."""
    return sum(_cpu_seconds(entry, leader) for entry in Path("/proc").iterdir())


def _cpu_seconds(entry: Path, leader: int) -> float:
    if not entry.name.isdigit():
        return 0.0
    with suppress(OSError):  # gone meanwhile
        # A name may hold spaces and brackets: the fields begin after the last one.
        fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        if int(fields[3]) == leader:
            return sum(map(int, fields[11:15])) / _TICKS
    return 0.0
