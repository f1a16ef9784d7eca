"""One pass of the original model over all documents: what both searches start from.

T tokens, D model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanmoe_pruning.forward.passes import check_activations, run_block
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.methods.cd_moe.condensed_layer import Condensed, RoutedWeights, pass_
from leanmoe_pruning.methods.cd_moe.divergence import Documents, channel_shares
from leanmoe_pruning.methods.cd_moe.expert_selection import ExpertOrder, ExpertSearch
from leanmoe_pruning.methods.cd_moe.memory import Layers, Scratch
from leanmoe_pruning.methods.cd_moe.search_cost import Work
from leanmoe_pruning.progress import Tick

Blocks = list[torch.Tensor]


@dataclass(frozen=True)
class LayerFacts:
    """What one MoE layer showed; ``attended`` is the stream before its block, ``[N, T, D]``."""

    weights: RoutedWeights
    attended: Blocks
    experts: ExpertOrder | None

    def condensed(self, with_experts: bool) -> Condensed:
        """What the layer is condensed to."""
        chosen = self.experts.order if with_experts and self.experts is not None else ()
        means = self.weights.means.tolist()
        return Condensed({expert: means[expert] for expert in chosen}, self.weights.shared_gate)


class Calibration:
    """The pass; ``steps`` experts are chosen per layer, none where 0."""

    def __init__(
        self,
        stream: DecoderStream,
        layers: Layers,
        documents: Documents,
        scratch: Scratch,
        work: Work,
    ) -> None:
        self._stream, self._layers, self._documents = stream, layers, documents
        self._scratch, self._work = scratch, work
        self.facts: dict[int, LayerFacts] = {}
        # What the final norm gives, as shares of the channels.
        self.final: Blocks = []

    def run(self, steps: int, exhaustive: bool, tick: Tick) -> None:
        """Fill ``facts`` and ``final``."""
        hidden = [self._stream.embed(block.ids_NT) for block in self._documents.blocks]
        for layer in self._layers.following():
            if layer.experts is None:
                for block in hidden:
                    pass_(layer, block, None)
            else:
                weights, attended = self._pass_noting(layer, hidden)
                search = self._search(layer, weights, attended, hidden) if steps else None
                found = None if search is None else search.run(steps, exhaustive)
                self.facts[layer.index] = LayerFacts(weights, attended, found)
            check_activations(f"layer {layer.index} of {self._stream.checkpoint.path}", hidden)
            self._work.layer(self._documents.tokens)
            tick()
        self.final = [
            channel_shares(self._stream.final_norm(block.flatten(0, 1))) for block in hidden
        ]

    def _pass_noting(self, layer: DecoderLayer, hidden: Blocks) -> tuple[RoutedWeights, Blocks]:
        assert layer.experts is not None
        weights, attended = RoutedWeights(len(layer.experts)), []
        for block in hidden:
            layer.attend_(block)
            attended.append(self._scratch.tensor(*block.shape).copy_(block))
            weights.add_shared(layer, layer.block_input(block))
            output_TD, routed = run_block(layer, block)
            assert routed is not None
            weights.add(routed.routing)
            layer.add_(block, output_TD)
        return weights, attended

    def _search(
        self, layer: DecoderLayer, weights: RoutedWeights, attended: Blocks, outputs: Blocks
    ) -> ExpertSearch:
        last = layer.index == self._stream.n_layers - 1
        return ExpertSearch(
            layer,
            self._documents,
            attended,
            outputs,
            weights,
            self._stream.final_norm if last else _as_it_is,
            self._work,
            self._scratch,
        )


def _as_it_is(hidden_TD: torch.Tensor) -> torch.Tensor:
    return hidden_TD
