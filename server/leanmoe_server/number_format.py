"""Number formats that a processor multiplies slowly, and that vLLM takes all the same."""

from __future__ import annotations

import platform

import torch

from leanmoe.process.environment import is_cpu_build

_X86 = ("x86_64", "AMD64")


def multiplies_slowly(dtype: torch.dtype) -> str | None:
    """What to say of an engine that computes in ``dtype`` here, or ``None`` where it is fast."""
    if dtype.itemsize != 2 or not is_cpu_build() or platform.machine() not in _X86:
        return None
    # Without AVX-512 vLLM falls back to torch's products, and torch to its plain ones.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"this processor has no AVX-512, so products of {name} are slow: with --dtype float32 "
        "prompts take a fraction of the time, and weights and KV cache twice the memory"
    )
