"""What one layer's experts see, and the layer-by-layer pass that shows it.

T tokens, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from leanmoe.families.base import PROJECTIONS
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.passes import (
    Hidden,
    check_activations,
    chunks,
    embed_all,
    run_block,
    step_,
)
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.moments import Moments, Shares

Schedule = Literal["unpruned", "pruned"]
SCHEDULES: tuple[Schedule, ...] = ("unpruned", "pruned")


@dataclass(frozen=True)
class LayerInputs:
    """The inputs of one layer's block, worked out anew from the hidden states when asked."""

    layer: DecoderLayer
    hidden: Hidden

    @property
    def experts(self) -> Experts:
        assert self.layer.experts is not None, f"layer {self.layer.index} is dense"
        return self.layer.experts

    def blocks(self) -> Iterator[torch.Tensor]:
        """The block's input, a few windows at a time, float32 ``[T, D]``."""
        for chunk_NTD, _ in chunks(self.hidden):
            yield self.layer.block_input(chunk_NTD)

    def routed(self) -> Iterator[tuple[torch.Tensor, Routing]]:
        """The same with their routing."""
        for x_TD in self.blocks():
            yield x_TD, self.layer.route(self.layer.router_logits(x_TD))

    def moments(self) -> Moments:
        """Second moments over all of it; experts that nothing reached have those of all."""
        experts = self.experts
        wide, narrow = experts.gate_proj[0].shape
        found = Moments.zeros(len(experts), narrow, wide)
        for (x_TD, routing), (chunk_NTD, _) in zip(self.routed(), chunks(self.hidden), strict=True):
            _add(found, experts, x_TD, routing, len(chunk_NTD))
        unrouted = (found.calls_E == 0).nonzero().flatten().tolist()
        for x_TD in self.blocks() if unrouted else ():
            for expert in unrouted:
                hidden_TF = experts.hidden(expert, x_TD)
                found.all_hidden_EF[expert] += hidden_TF.double().square().sum(0)
        check_activations(f"layer {self.layer.index}", (found.all_input_D, found.hidden_EF))
        return found


def _add(
    found: Moments, experts: Experts, x_TD: torch.Tensor, routing: Routing, windows: int
) -> None:
    shares = Shares.of(routing, len(experts), sampled=torch.arange(0))
    found.add_inputs_(x_TD, shares)
    for expert in range(len(experts)):
        chosen_TK = routing.ids_TK == expert
        token = chosen_TK.any(1).nonzero().flatten()
        if len(token):
            found.add_hidden_(expert, experts.hidden(expert, x_TD[token]), token, shares)
            found.calls_E[expert] += chosen_TK.view(windows, -1).any(1).sum()


Prune = Callable[[LayerInputs], LayerWeights]


def run_schedule(
    stream: DecoderStream,
    ids: Sequence[torch.Tensor],
    schedule: Schedule,
    prune: Prune,
    tick: Tick,
) -> None:
    """Prune every MoE layer; what the next one sees comes from it as ``schedule`` says."""
    hidden = embed_all(stream, ids)
    for layer in stream.layers():
        _pass_layer(layer, hidden, schedule, prune)
        tick()


def _pass_layer(layer: DecoderLayer, hidden: Hidden, schedule: Schedule, prune: Prune) -> None:
    if not layer.experts:
        step_(layer, hidden)
        return
    for chunk_NTD, _ in chunks(hidden):
        layer.attend_(chunk_NTD)
    weights = prune(LayerInputs(layer, hidden))
    if schedule == "pruned":
        layer = with_weights(layer, weights)
    for chunk_NTD, _ in chunks(hidden):
        output_TD, _ = run_block(layer, chunk_NTD)
        layer.add_(chunk_NTD, output_TD)


def with_weights(layer: DecoderLayer, weights: LayerWeights) -> DecoderLayer:
    """The layer with other expert matrices."""
    assert layer.experts is not None, f"layer {layer.index} is dense"
    dtype = layer.experts.dtype
    held: dict[str, Any] = {
        projection: [weights.meant(projection, e).to(dtype) for e in range(weights.n_experts)]
        for projection in PROJECTIONS
    }
    return replace(layer, experts=replace(layer.experts, **held))
