"""What ``--dump`` writes of both searches, under the names of the golden sets' README.

Here layers are counted as the published files do: 0 is the first MoE layer.
N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.data import DataSet
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.cd_moe.calibration import Calibration
from leanmoe_pruning.methods.cd_moe.condensed_layer import Condensed, pass_
from leanmoe_pruning.methods.cd_moe.expert_selection import ExpertOrder
from leanmoe_pruning.methods.cd_moe.layer_selection import LayerOrder
from leanmoe_pruning.methods.cd_moe.memory import Layers

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evidence:
    """Both searches, every candidate measured; ``orders`` is by variant."""

    moe_layers: tuple[int, ...]
    calibration: Calibration
    orders: Mapping[str, LayerOrder]

    @property
    def _experts(self) -> list[ExpertOrder]:
        found = [self.calibration.facts[layer].experts for layer in self.moe_layers]
        return [one for one in found if one is not None]

    def _relative(self, order: LayerOrder) -> list[int]:
        return [self.moe_layers.index(layer) for layer in order.order]

    def tensors(self) -> Tensors:
        """Everything but logits."""
        weights = [self.calibration.facts[layer].weights for layer in self.moe_layers]
        found = {
            "gate_selected_count": torch.stack([one.selected_E for one in weights]),
            "gate_weight_sum": torch.stack([one.weight_E for one in weights]),
            "mean_gate_weight": torch.stack([one.means for one in weights]),
            "expert_order": torch.tensor([one.order for one in self._experts]),
            "expert_js": torch.stack([one.js_SE for one in self._experts]),
            "expert_step_js": _doubles([one.step_js for one in self._experts]),
            "shared_only_js": _doubles([one.shared_only_js for one in self._experts]),
        }
        shared = [one.shared_gate for one in weights]
        if None not in shared:
            found["mean_shared_gate"] = _doubles(shared)
        for variant, order in self.orders.items():
            found[f"layer_order.{variant}"] = torch.tensor(self._relative(order))
            found[f"layer_js.{variant}"] = order.js_SL
            found[f"layer_step_js.{variant}"] = _doubles(order.step_js)
        return found

    def facts(self, data: DataSet) -> dict[str, Any]:
        """The orders and divergences again, for people."""
        return {
            "num_documents": data.windows,
            "document_lengths": [ids.shape[1] for ids in data.ids for _ in range(len(ids))],
            "num_moe_layers": len(self.moe_layers),
            "first_moe_decoder_layer": self.moe_layers[0],
            "num_selected": len(self._experts[0].order),
            "expert_order": [list(one.order) for one in self._experts],
            "expert_step_js": [list(one.step_js) for one in self._experts],
            "shared_only_js": [one.shared_only_js for one in self._experts],
            "layer_order": {v: self._relative(order) for v, order in self.orders.items()},
            "layer_step_js": {v: list(order.step_js) for v, order in self.orders.items()},
        }

    def logits(
        self,
        stream: DecoderStream,
        layers: Layers,
        probe: DataSet,
        variant: str,
        wanted: Mapping[int, Condensed],
    ) -> Tensors:
        """Of the original model and of every prefix of the order, sources one after another."""

        def of(condensed: Mapping[int, Condensed]) -> torch.Tensor:
            return torch.cat([_probe_logits(stream, layers, ids, condensed) for ids in probe.ids])

        order = self.orders[variant].order
        named = {
            f"probe_logits.{variant}.{n}": of(condensed)
            for n, condensed in _growing(order, wanted).items()
        }
        return {"probe_logits.original": of({}), **named}


def _doubles(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _probe_logits(
    stream: DecoderStream,
    layers: Layers,
    ids_NT: torch.Tensor,
    condensed: Mapping[int, Condensed],
) -> torch.Tensor:
    """float32 ``[N, T, V]``."""
    hidden_NTD = stream.embed(ids_NT)
    for layer in layers.following():
        pass_(layer, hidden_NTD, condensed.get(layer.index))
    return stream.logits(hidden_NTD.flatten(0, 1)).view(*ids_NT.shape, -1)


def _growing(
    order: Sequence[int], wanted: Mapping[int, Condensed]
) -> dict[int, dict[int, Condensed]]:
    """The first n layers of an order condensed, for n from 1 on."""
    return {n: {layer: wanted[layer] for layer in order[:n]} for n in range(1, len(order) + 1)}
