"""Processes that vLLM starts end with the one that started them, however that one ends.

A server that is killed cannot tell its engine, which would keep memory and device for good.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; nothing in one nobody spawned."""
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # It may have ended before the kernel was asked.
    if not parent.is_alive():
        os.kill(os.getpid(), signal.SIGKILL)
