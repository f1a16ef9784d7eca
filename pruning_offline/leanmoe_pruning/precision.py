"""What matrix products are computed in, where nobody says."""

from __future__ import annotations

from functools import cache

from leanmoe_pruning.later import torch

FLOAT32, BFLOAT16 = "float32", "bfloat16"
CHOICES = (FLOAT32, BFLOAT16)


def default_precision(stored_bytes: int) -> str:
    """The fastest here for weights of so many bytes each, without rounding those of float32."""
    return FLOAT32 if stored_bytes >= 4 or not multiplies_bfloat16() else BFLOAT16


@cache
def multiplies_bfloat16() -> bool:
    """True where torch has fast products of bfloat16 for this processor.

    Without (x86 before AVX-512), they take seven times as long as float32's. True also where torch
    is not installed or does not say.
    """
    try:
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    except ModuleNotFoundError:
        return True
    return asked is None or bool(asked())
