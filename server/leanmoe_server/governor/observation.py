"""What the governor sees of a server: load, latencies, work done, in one short interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Observation:
    """The ``seconds`` before a look at the server; ``None`` where nothing was measured.

    ``running`` and ``waiting`` are requests at its end, ``first_tokens`` answers that began in it,
    ``steps`` engine steps of it with ``tokens`` in all. ``skipped_share`` is that of all
    assignments, ``distinct_experts`` the mean that a step read per layer, ``bandwidth_share`` what
    reading weights took of the memory's bandwidth.
    """

    seconds: float
    running: int
    waiting: int
    kv_usage: float = 0.0
    first_tokens: int = 0
    ttft_seconds: float | None = None
    itl_seconds: float | None = None
    steps: int = 0
    tokens: int = 0
    skipped_share: float | None = None
    distinct_experts: float | None = None
    bandwidth_share: float | None = None

    @property
    def idle(self) -> bool:
        return self.running == 0 and self.waiting == 0
