"""A child process with everything it starts: stopped, continued and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class ProcessGroup:
    """A process that leads a group of its own, so that its children can be signalled with it."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], output: IO[Any], **options: Any
    ) -> None:
        self.process: subprocess.Popen[Any] = subprocess.Popen(
            command, env=env, stdout=output, stderr=output, start_new_session=True, **options
        )

    def signal(self, number: signal.Signals) -> None:
        """Signal every process of the group; none left is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, grace_seconds: float) -> None:
        """Wait for the leader to end, then kill whatever of the group is left."""
        self.signal(signal.SIGCONT)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=grace_seconds)
        finally:
            # Also when a second Ctrl-C cuts the waiting short: the group sees no terminal.
            self.signal(signal.SIGKILL)
            self.process.wait()


def last_lines(log: Path, count: int = 15) -> str:
    """How the log of a process ends."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
