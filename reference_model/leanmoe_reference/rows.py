"""Weights as int8 rows with a float32 scale each: half of bfloat16's size.

What comes back is one float32 product, rounded once: the same bits on every machine.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
LARGEST = 127


def to_rows(weights_UD: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[U, D]`` and the scales ``[U]`` of its rows; a row of zeros has scale 1."""
    highest_U = weights_UD.abs().amax(dim=1)
    scale_U = torch.where(highest_U > 0, highest_U / LARGEST, torch.ones_like(highest_U))
    return (weights_UD / scale_U[:, None]).round().to(torch.int8), scale_U


def from_rows(rows_UD: Tensor, scale_U: Tensor) -> Tensor:
    """The bfloat16 weights ``[U, D]``."""
    return (rows_UD.float() * scale_U[:, None]).bfloat16()
