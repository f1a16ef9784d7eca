"""Freed memory handed back, where tensors of some megabytes come and go.

glibc keeps blocks of that size in its heap; the holes between long-lived ones would cost a
training of the reference model some 1.5 GB.
"""

from __future__ import annotations

import ctypes
import sys


def hand_back_freed_memory() -> None:
    """Return the heap's free pages to the system; nothing happens without glibc."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
