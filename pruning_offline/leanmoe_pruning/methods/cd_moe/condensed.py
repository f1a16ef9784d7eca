"""A condensed layer: shared(x) + the sum of some experts, each times a constant, no router.

T tokens, D model, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.forward.passes import run_block
from leanmoe_pruning.forward.stream import DecoderLayer


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
