"""How experts are weighed where they are chosen: the constants of a condensed layer.

T tokens, D model, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer


class GateUse:
    """Counts and sums of one layer's gate weights, after top-k, renormalising and scaling."""

    def __init__(self, n_experts: int) -> None:
        self.selected_E = torch.zeros(n_experts, dtype=torch.int64)
        self.weight_E = torch.zeros(n_experts, dtype=torch.float64)
        self._shared_sum, self._tokens = 0.0, 0

    def add(self, routing: Routing) -> None:
        """Take the tokens of one block."""
        ids, weights = routing.ids_TK.flatten(), routing.applied().double().flatten()
        self.selected_E.index_add_(0, ids, torch.ones_like(ids))
        self.weight_E.index_add_(0, ids, weights)

    def add_shared(self, layer: DecoderLayer, x_TD: torch.Tensor) -> None:
        """Take the shared expert's own gate, where it has one."""
        if layer.always is None or layer.always.share_1D is None:
            return
        share_T1 = functional.linear(x_TD, layer.always.share_1D).sigmoid()
        self._shared_sum += float(share_T1.double().sum())
        self._tokens += len(x_TD)

    @property
    def means(self) -> torch.Tensor:
        """Mean weight over the tokens that selected the expert, float64; 0 where none did."""
        return self.weight_E / self.selected_E.clamp_min(1)

    @property
    def shared_gate(self) -> float | None:
        """Mean over all tokens of the shared expert's gate, or ``None`` where it has none."""
        return self._shared_sum / self._tokens if self._tokens else None
