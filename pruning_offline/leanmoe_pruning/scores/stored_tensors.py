"""Tensors of a score bundle's file, checked before anything is decided from them.

The bundle's digests show that files are those that were written; here it is looked whether what
was written can be read as scores: every tensor there, of its size and type, and of finite numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leanmoe.errors import InputError

# Sizes and type; None stands for a size that only the model tells.
Expected = tuple[tuple[int | None, ...], torch.dtype]
_OPTIONAL = ("peak_output", "router_correction")


def expected_of_layer(tokens: int, sampled: int, experts: int, pairs: int) -> dict[str, Expected]:
    """What a layer's file holds that decisions rest on; ``pairs`` is of a packed Gram matrix."""
    columns = ("input", "gated_input", "hidden", "gated_hidden", "all_hidden")
    ends = {"input": "ED", "gated_input": "ED"}
    moments: dict[str, Expected] = {
        f"moments.{name}_{ends.get(name, 'EF')}": ((experts, None), torch.float64)
        for name in columns
    }
    return {
        "router_logits": ((tokens, experts), torch.float32),
        "output_gram": ((sampled, pairs), torch.float64),
        "output_norm": ((tokens, None), torch.float32),
        "max_activation": ((experts,), torch.float32),
        "peak_output": ((experts,), torch.float32),
        "router_correction": ((experts,), torch.float32),
        **moments,
        "moments.all_input_D": ((None,), torch.float64),
        "moments.calls_E": ((experts,), torch.int64),
    }


def read_checked(path: Path, expected: Mapping[str, Expected]) -> dict[str, torch.Tensor]:
    """The tensors of a file; raise ``InputError`` at the first that is not as expected."""
    try:
        held = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as scores ({error}); score again") from None
    for name, (size, dtype) in expected.items():
        if name in held:
            _check(path, name, held[name], size, dtype)
        elif name not in _OPTIONAL:
            raise InputError(f"{path} lacks the tensor {name}; score again")
    return held


def _check(
    path: Path, name: str, tensor: torch.Tensor, size: tuple[int | None, ...], dtype: torch.dtype
) -> None:
    fits = len(tensor.shape) == len(size) and all(
        one in (None, found) for one, found in zip(size, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        sizes = ", ".join("any" if one is None else str(one) for one in size)
        raise InputError(
            f"{path} has {name} of {list(tensor.shape)} {_named(tensor.dtype)}, expected "
            f"[{sizes}] {_named(dtype)}; score again"
        )
    if not torch.isfinite(tensor).all():
        raise InputError(
            f"{path} has {name} that is not finite everywhere, so nothing can be decided from it; "
            "score again, with --compute float32 if the model overflows"
        )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
