"""A condensed layer: shared(x) + the sum of some experts, each times a constant, no router.

The constant of an expert is its mean weight over the tokens that chose it (the paper's w-bar).
T tokens, D model, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.forward.passes import run_block
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer


class RoutedWeights:
    """Counts and sums of one layer's router weights, after top-k, renormalising and scaling.

    Their means where an expert is chosen are the constants of the condensed layer.
    """

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


@dataclass(frozen=True)
class Condensed:
    """What a layer is condensed to; ``shared_gate`` is None where no gate is on shared(x)."""

    constants: Mapping[int, float] = field(default_factory=dict)
    shared_gate: float | None = None

    def plan(self) -> LayerPlan:
        """The same for the cutter."""
        return LayerPlan(condense=dict(self.constants), shared_gate=self.shared_gate)


def shared_output(
    layer: DecoderLayer, x_TD: torch.Tensor, shared_gate: float | None
) -> torch.Tensor:
    """shared(x) with its gate replaced by a constant, float32 ``[T, D]``; zeros without one."""
    if layer.always is None:
        return torch.zeros(x_TD.shape, dtype=torch.float32)
    if shared_gate is None:
        return layer.always.output(x_TD)
    return replace(layer.always, share_1D=None).output(x_TD) * shared_gate


def condensed_output(layer: DecoderLayer, x_TD: torch.Tensor, wanted: Condensed) -> torch.Tensor:
    """The condensed block's output, float32 ``[T, D]``."""
    y_TD = shared_output(layer, x_TD, wanted.shared_gate)
    assert layer.experts is not None, f"layer {layer.index} is dense"
    for expert, constant in sorted(wanted.constants.items()):
        y_TD.add_(layer.experts.output(expert, x_TD), alpha=constant)
    return y_TD


def finish_(layer: DecoderLayer, hidden_NTD: torch.Tensor, wanted: Condensed | None) -> None:
    """Add the block's output to a stream that has passed the layer's attention, in place."""
    if wanted is None:
        output_TD, _ = run_block(layer, hidden_NTD)
    else:
        output_TD = condensed_output(layer, layer.block_input(hidden_NTD), wanted)
    layer.add_(hidden_NTD, output_TD)


def pass_(layer: DecoderLayer, hidden_NTD: torch.Tensor, wanted: Condensed | None) -> None:
    """One whole decoder layer, condensed where ``wanted`` says to what, in place."""
    layer.attend_(hidden_NTD)
    finish_(layer, hidden_NTD, wanted)
