"""The model an individual stands for: experts merged by W_EM, probabilities mapped by W_RM.

What only selects copies no weight: the layer gets a shorter list of the same tensors. What
mixes is summed as ``cutting.pieces`` sums it, in the same order, and rounded to the
checkpoint's dtype before the dtype of the products, so that what is judged is what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe_pruning.checkpoints.opening import block_sizes
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.cutting.pieces import weighted_sum
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.stream import DecoderLayer
from leanmoe_pruning.methods.eep.individual import Individual

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """What expert weights are written in."""
    # The order of block_sizes: the router first, an expert's weights last.
    return ShardReader.of(checkpoint).info(list(block_sizes(checkpoint))[-1]).dtype.torch


@dataclass(frozen=True)
class Applied:
    """How individuals become layers: each layer's group, the new top-k, the stored dtype."""

    group_of: Mapping[int, int]
    top_k: int
    stored: torch.dtype

    def to_model(self, model: ResidentModel, individual: Individual) -> ResidentModel:
        """The model an individual stands for; memory only where it mixes."""
        own = {layer.index: layer for layer in model.layers}
        layers = {
            index: self.to_layer(own[index], individual, group)
            for index, group in self.group_of.items()
        }
        return model.changed(layers=layers)

    def to_layer(
        self, layer: DecoderLayer, individual: Individual, group: int, as_merged: bool = False
    ) -> DecoderLayer:
        """One layer with the experts and the router of its group, mapped even if it only selects
        where ``as_merged`` says so."""
        assert layer.experts is not None and layer.gate_ED is not None
        shape = replace(layer.shape, n_routed_experts=individual.n_slots, top_k=self.top_k)
        kept = None if as_merged else _plain_cut(individual, group, layer.shape.renormalize)
        if kept is not None:
            experts = _selected(layer.experts, kept)
            return replace(layer, experts=experts, gate_ED=layer.gate_ED[list(kept)], shape=shape)
        experts = self._mixed(layer.experts, individual.experts[group])
        return replace(layer, experts=experts, transfer=individual.router[group], shape=shape)

    def _mixed(self, experts: Experts, rows: torch.Tensor) -> Experts:
        held: dict[str, Any] = {}
        for projection in _PROJECTIONS:
            source = getattr(experts, projection)
            held[projection] = [self._slot(source, row) for row in rows.tolist()]
        return replace(experts, **held)

    def _slot(self, source: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        used = [place for place, factor in enumerate(factors) if factor]
        if len(used) == 1 and factors[used[0]] == 1.0:
            return source[used[0]]
        total = weighted_sum(source.__getitem__, factors, source[0].shape)
        return total.to(self.stored).to(source[0].dtype)

    def plans(self, individual: Individual, renormalize: bool) -> dict[int, LayerPlan]:
        """What the cutter is to do for every layer."""
        return {
            index: self._plan(individual, group, renormalize)
            for index, group in self.group_of.items()
        }

    def _plan(self, individual: Individual, group: int, renormalize: bool) -> LayerPlan:
        kept = _plain_cut(individual, group, renormalize)
        if kept is not None:
            return LayerPlan(keep=kept, top_k=self.top_k)
        return LayerPlan(
            merge=Merge(
                router=individual.router[group].tolist(),
                experts=individual.experts[group].tolist(),
            ),
            top_k=self.top_k,
        )


def _plain_cut(individual: Individual, group: int, renormalize: bool) -> tuple[int, ...] | None:
    """The experts kept where deleting the others' router rows says the same.

    Without renormalising it does not: EEP loses the mass of what was pruned, a shorter softmax
    gives it to what is left.
    """
    return individual.prunes(group) if renormalize else None


def _selected(experts: Experts, kept: Sequence[int]) -> Experts:
    held: dict[str, Any] = {
        projection: [getattr(experts, projection)[expert] for expert in kept]
        for projection in _PROJECTIONS
    }
    return replace(experts, **held)
