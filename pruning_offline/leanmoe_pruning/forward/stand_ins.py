"""What stands in for removed experts, offline: loading and computing it.

T tokens, D model, F expert hidden, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional

from leanmoe.families import Family, MoEShape
from leanmoe.layout import LayerLayout
from leanmoe.stand_ins import stand_in_name, stand_in_sizes
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.families.base import separate_experts
from leanmoe_pruning.forward.weights import Weights


@dataclass(frozen=True)
class LowRank:
    """``c + (x into^T) out``, float32; at rank 0 the constant ``c`` alone."""

    constant_D: torch.Tensor
    into_RD: torch.Tensor
    out_RD: torch.Tensor

    def output(self, x_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, D]``."""
        inner_TR = functional.linear(x_TD.float(), self.into_RD)
        return torch.addmm(self.constant_D, inner_TR, self.out_RD)


def experts_with_stand_ins(
    weights: Weights, family: Family, layer: int, shape: MoEShape, own: LayerLayout
) -> Experts:
    """A layer's experts, those that were removed without weights and with what stands in."""
    ids, rank = own.stand_ins or (), own.rank or 0
    kept = separate_experts(weights, family, layer, shape, absent=ids)
    sizes = stand_in_sizes(shape.hidden_size, rank)

    def read(expert: int) -> LowRank:
        name = partial(stand_in_name, family, layer, expert)
        parts = {part: weights.exact(name(part), size) for part, size in sizes.items()}
        none_RD = torch.empty(0, shape.hidden_size)
        maps = (parts.get("approx_in", none_RD), parts.get("approx_out", none_RD))
        return LowRank(parts["approx_value"], *maps)

    return replace(kept, stand_ins={expert: read(expert) for expert in ids})
