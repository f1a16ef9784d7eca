"""Unix time that never steps: the wall clock once, then the monotonic time that passed.

Processes forked from one share the reading, so their times agree to the microsecond; other
machines agree as well as their wall clocks do.
"""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def now() -> float:
    """Seconds since 1970, monotone within a process."""
    return _OFFSET + time.monotonic()
