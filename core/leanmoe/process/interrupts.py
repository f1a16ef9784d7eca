"""Ctrl-C and SIGTERM as one interrupt, so that a stopped command cleans up after itself.

Libraries in C may turn the exception of a signal handler into one of their own; whether
an interrupt was asked for is therefore remembered.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def interrupt_from_the_start() -> None:
    """Have SIGTERM interrupt a process as Ctrl-C does, before any command is known.

    Lets through what ``hold_signals`` held back for it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def hold_signals() -> None:
    """Keep signals to stop waiting while this process is replaced by another Python."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def interrupt_requested() -> bool:
    """True once a signal asked a command of this process to stop."""
    return _requested.is_set()


def forget_interrupts() -> None:
    """Begin a command: what stopped an earlier one of this process is not its own."""
    _requested.clear()


def _stop(signum: int, frame: FrameType | None) -> None:
    _requested.set()
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in the block on SIGINT and SIGTERM (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    before = {number: signal.signal(number, _stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
