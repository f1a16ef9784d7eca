"""The operator ``leanmoe::sparse_experts`` (experts.cpp): a MoE block on packed experts, on CPUs.

E experts, R rows, V values and B bytes of mask of a row, T tokens, K top-k, D model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from leanmoe_runtime.native import sparse_library


@dataclass(frozen=True)
class PackedProjection:
    """One projection of all experts, as the operator reads it (storage.py).

    ``overflow`` is empty, or the starts of all rows' entries, their columns and values.
    """

    values_ERV: torch.Tensor
    mask_ERB: torch.Tensor
    overflow: Sequence[torch.Tensor] = field(default=())


def sparse_experts(
    x_TD: torch.Tensor,
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    gate_up: PackedProjection,
    down: PackedProjection,
    orders_ED: torch.Tensor | None,
    activation: str,
    isa: str = "",
) -> torch.Tensor:
    """What the experts of every token add up to, ``[T, D]``; a pair of id -1 costs nothing.

    ``isa`` names an instruction set, the best the processor has if empty.
    """
    instruction_sets()
    out: torch.Tensor = torch.ops.leanmoe.sparse_experts(
        x_TD,
        weights_TK,
        ids_TK,
        gate_up.values_ERV,
        gate_up.mask_ERB,
        down.values_ERV,
        down.mask_ERB,
        orders_ED,
        list(gate_up.overflow),
        list(down.overflow),
        activation,
        isa,
    )
    return out


@cache
def instruction_sets() -> tuple[str, ...]:
    """What this processor can compute with, best first; builds and loads the operator."""
    named = sparse_library().leanmoe_sparse_instruction_sets
    named.restype = ctypes.c_char_p
    found: bytes = named()
    return tuple(found.decode().split(","))
