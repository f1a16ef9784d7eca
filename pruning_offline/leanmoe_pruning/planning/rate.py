"""How fast this machine multiplies matrices: the one thing measured for a plan."""

from __future__ import annotations

import time

import torch

_SIZE, _LONGEST_SECONDS = 1024, 0.4


def matmul_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second, from the best of a few products of 1024 x 1024."""
    left = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best, end = float("inf"), time.monotonic() + _LONGEST_SECONDS
    while True:
        start = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - start)
        if time.monotonic() > end:
            return 2 * _SIZE**3 / best
