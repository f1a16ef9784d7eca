"""The published formula, and the one point where what is judged and served leaves it.

The released code clamps nothing, so an expert whose mapped probability is negative can be among
the chosen and is given a negative weight. What is served and judged clamps mapped
probabilities at ``LEAST_PROBABILITY``: skipping compares weights with the largest, which
needs them positive. Such an expert then counts for nothing; ``Negatives`` counts how often.
``Evidence`` runs the formula unclamped, for the numbers of the golden sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch.nn import functional

from leanmoe.layout import LEAST_PROBABILITY
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.routing import Routing, route_mapped
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.merged_model import Applied

# The logarithm of the clamp; that of no probability worth the name comes near it.
_AT_CLAMP = math.log(LEAST_PROBABILITY) + 1e-2
# w1, w2, w3 of the golden sets.
_FILE_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass
class Negatives:
    """Chosen (token, expert) pairs of mapped layers, and those at the clamp among them."""

    chosen: int = 0
    negative: int = 0

    def note(self) -> tuple[str, ...]:
        """What a user should know about them."""
        if not self.negative:
            return ()
        return (
            f"{self.negative} of {self.chosen} chosen experts have a mapped probability below "
            "zero: the published code would give them negative weights, and here, as when "
            "served, they count for nothing",
        )


@dataclass(frozen=True)
class CountingLayer(DecoderLayer):
    """A mapped layer, routing as served, that counts into ``counts``."""

    counts: Negatives = field(default_factory=Negatives)

    def route(self, logits_TE: torch.Tensor, kept: Sequence[int] | None = None) -> Routing:
        found = super().route(logits_TE, kept)
        logits_TK = logits_TE.gather(-1, found.ids_TK)
        self.counts.chosen += logits_TK.numel()
        self.counts.negative += int((logits_TK <= _AT_CLAMP).sum())
        return found


def counting(layer: DecoderLayer, counts: Negatives) -> CountingLayer:
    """The same layer, counting."""
    own = {one.name: getattr(layer, one.name) for one in fields(DecoderLayer)}
    return CountingLayer(**own, counts=counts)


class Unskipped(Routing):
    """Chosen experts that all count: the skip rule would skip negative weights at beta 0 too."""

    def kept(
        self, betas_T: torch.Tensor | float, factors_E: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.ones_like(self.ids_TK, dtype=torch.bool)


class PublishedLayer(DecoderLayer):
    """A merged layer that routes by unclamped mapped probabilities."""

    @classmethod
    def of(cls, layer: DecoderLayer) -> PublishedLayer:
        return cls(**{one.name: getattr(layer, one.name) for one in fields(layer)})

    def router_logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Mapped probabilities instead of logits, of any sign, float32 ``[T, E']``."""
        assert self.gate_ED is not None and self.transfer is not None
        logits_TE = functional.linear(x_TD, self.gate_ED, self.gate_bias_E)
        return functional.linear(logits_TE.softmax(-1), self.transfer)

    def route(self, logits_TE: torch.Tensor, kept: object = None) -> Routing:
        found = route_mapped(logits_TE, self.rule)
        return Unskipped(found.weights_TK, found.ids_TK, found.renormalize, found.scale)


def merged_layers(
    stream: DecoderStream, applied: Applied, individual: Individual
) -> Iterator[DecoderLayer]:
    """The model's layers, merged ones as published, one at a time in memory."""
    for layer in stream.layers():
        group = applied.group_of.get(layer.index)
        if group is None:
            yield layer
            continue
        yield PublishedLayer.of(applied.to_layer(layer, individual, group, as_merged=True))


class Evidence:
    """What a dump of a merged model holds, gathered while its layers pass."""

    def __init__(self, ids_NT: torch.Tensor | None, block_input_NTD: torch.Tensor | None) -> None:
        self._ids_NT, self._input_NTD = ids_NT, block_input_NTD
        self.counts = Negatives()
        self._outputs: list[torch.Tensor] = []
        self._weights: dict[str, torch.Tensor] = {}

    def run(
        self, stream: DecoderStream, applied: Applied, individual: Individual
    ) -> Mapping[str, torch.Tensor]:
        """Tensors under the names of the golden sets, without the name of the case."""
        ids = [] if self._ids_NT is None else [self._ids_NT]
        hidden = embed_all(stream, ids)
        for layer in merged_layers(stream, applied, individual):
            if isinstance(layer, PublishedLayer):
                self._look_at(layer)
            routed = step_(layer, hidden)
            if routed is not None:
                self.counts.chosen += routed.routing.ids_TK.numel()
                self.counts.negative += int((routed.routing.weights_TK < 0).sum())
        tensors = dict(self._weights)
        if self._outputs:
            tensors["block_output"] = torch.stack(self._outputs)
        if hidden:
            tensors["probe_logits"] = torch.stack([stream.logits(one) for one in hidden[0]])
        return tensors

    def _look_at(self, layer: PublishedLayer) -> None:
        assert layer.experts is not None
        for name, projection in _FILE_NAMES.items():
            for slot, weight in enumerate(getattr(layer.experts, projection)):
                self._weights[f"merged.{layer.index}.{slot}.{name}"] = weight
        if self._input_NTD is not None:
            self._outputs.append(_block(layer, self._input_NTD))


def _block(layer: DecoderLayer, x_NTD: torch.Tensor) -> torch.Tensor:
    assert layer.experts is not None
    x_TD = x_NTD.flatten(0, 1).float()
    routing = layer.route(layer.router_logits(x_TD))
    everything = torch.ones_like(routing.ids_TK, dtype=torch.bool)
    output_TD = layer.experts.routed(x_TD, routing.applied(), routing.ids_TK, everything)
    shared_TD = layer.shared(x_TD)
    if shared_TD is not None:
        output_TD += shared_TD
    return output_TD.view_as(x_NTD)
