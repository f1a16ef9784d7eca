"""Resident memory of the server's processes: the API process, the engine core, the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import psutil

API_SERVER = "api_server"


def _label(process: psutil.Process, workers: Mapping[int, str]) -> str:
    if process.pid in workers:
        return workers[process.pid]
    title = " ".join(process.cmdline()[:1])
    return "engine_core" if "EngineCore" in title else "other"


def resident_bytes(workers: Mapping[int, str]) -> dict[str, int]:
    """Bytes by process label; ``workers`` maps process ids to worker names.

    Processes that share a label are summed; one that ends meanwhile is left out.
    """
    own = psutil.Process()
    sizes: Counter[str] = Counter()
    sizes[API_SERVER] = own.memory_info().rss
    for child in own.children(recursive=True):
        try:
            sizes[_label(child, workers)] += child.memory_info().rss
        except psutil.Error:
            continue
    return dict(sizes)
