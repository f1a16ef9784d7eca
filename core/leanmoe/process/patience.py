"""How long to wait for a process that works: by what it computes, not by the clock alone."""

from __future__ import annotations

from leanmoe.process.processor_time import attentive_clock, session_seconds

# A start of a server takes one to three minutes of computing, on however slow a machine.
MOST_CPU_SECONDS = 1800.0
# One that waits for nobody still polls: about 0.1 s of computing in such a time.
IDLE_SECONDS, _IDLE_CPU_SECONDS = 300.0, 1.0


class Patience:
    """Waits for the processes of a session while they get on.

    ``leader`` is the process id of the session's first. Beside four busy processes a start takes
    five times as long and computes as much as ever, which is why no fixed time is right. What
    waits for a processor is not idle.
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
        now = session_seconds(leader)
        self._begun, self._wanted = now.ran, now.wanted
        self._since = attentive_clock()

    def lost(self) -> str | None:
        """Why waiting longer is of no use, ``None`` while it is."""
        now = session_seconds(self._leader)
        if now.ran - self._begun > self._most:
            return f"it has computed for {now.ran - self._begun:.0f} s and is not done"
        # A process that ended takes along what it waited: that is a sign of life, too.
        if abs(now.wanted - self._wanted) >= _IDLE_CPU_SECONDS:
            self._wanted, self._since = now.wanted, attentive_clock()
        if attentive_clock() - self._since > self._idle:
            return f"it has computed nothing for {self._idle:.0f} s"
        return None
