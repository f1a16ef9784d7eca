"""Stops before the port is open, and the last resort for a process that does not end by itself.

While vLLM loads a model it turns SIGTERM into a ``KeyboardInterrupt`` that one of its own context
managers swallows. What ends it is a ``SystemExit``.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

logger = logging.getLogger(__name__)
# vLLM gives its processes five seconds to end, and then kills them.
LOADING_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


def end_within(seconds: float, code: int) -> None:
    """Then end this process with ``code``, and what it started, unless it has ended by itself."""

    def end() -> None:
        logger.error("the process did not end within %s s by itself: ending it", seconds)
        _kill_children()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


@contextmanager
def stopped_while_loading() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` out of the block once a signal told it to stop."""
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            end_within(LOADING_SECONDS, 130)
        asked = True
        raise SystemExit(130)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except SystemExit:
        if not asked:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Also where an error took the exit's place.
    if asked:
        raise KeyboardInterrupt("no request was answered yet")
