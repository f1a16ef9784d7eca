"""What one layer ran since the start, as drop.c adds it up."""

from __future__ import annotations

import ctypes


class Counters(ctypes.Structure):
    """``struct counts`` of drop.c; ``leanmoe.messages.LayerCounts`` says what each means."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("skipped", ctypes.c_int64),
        ("substituted", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("distinct_experts", ctypes.c_int64),
        ("nonfinite", ctypes.c_int64),
        ("skipped_weight", ctypes.c_double),
    )

    tokens: int
    skipped: int
    substituted: int
    steps: int
    distinct_experts: int
    nonfinite: int
    skipped_weight: float
