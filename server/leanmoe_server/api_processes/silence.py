"""How long another API process has been silent."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from leanmoe_server.api_processes.process_set import OWNER, ApiProcess
from leanmoe_server.pulse import Pulse, work_of

# Between two states that the owner sends while nothing changes.
BEAT_SECONDS = 1.0


def named(index: int) -> str:
    """Process ``index`` in a sentence."""
    return f"API process {index}" + (", which owns the policy," if index == OWNER else "")


def pulse_of(place: ApiProcess, index: int) -> Pulse:
    """Beats with every word of process ``index``."""

    def process() -> Iterator[psutil.Process]:
        if pid := place.pid_of(index):
            yield psutil.Process(pid)

    return Pulse(BEAT_SECONDS, work=lambda: work_of(process()), who=f"{named(index)} has")
