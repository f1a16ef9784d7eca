"""Resident memory of a process and all it started."""

from __future__ import annotations

import psutil


def resident_bytes(leader: int) -> int:
    """Of the tree below and with ``leader``; what ends meanwhile counts nothing."""
    first = psutil.Process(leader)
    return sum(map(_resident, [first, *first.children(recursive=True)]))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
