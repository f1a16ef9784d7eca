"""What a dump of the saliency methods holds: REAP's statistics under both readings of the gate.

Names and dtypes are the golden sets': ``renorm`` takes gate weights over their sum per token,
``raw`` as the router scored them. L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leanmoe_pruning.methods.saliency import gate_weights, highest, mean_of, per_expert
from leanmoe_pruning.scores.layer_scores import LayerScores

READINGS = ("renorm", "raw")
RANKED_BY = ("reap", "expert_frequency", "ean_mean", "weighted_ean_sum")
Tensors = dict[str, torch.Tensor]


class Observations:
    """Statistics gathered while the layers pass."""

    def __init__(self) -> None:
        self._layers: dict[str, list[Tensors]] = {reading: [] for reading in READINGS}

    def add(self, scores: LayerScores) -> None:
        for reading, found in self._layers.items():
            found.append(_statistics(scores, reading))

    def tensors(self, keeps: Sequence[int], n_groups: int) -> Tensors:
        """``{reading}.{statistic}`` [L, E], and who would stay by each ranking for each keep."""
        found: Tensors = {}
        for reading, layers in self._layers.items():
            for name in layers[0]:
                found[f"{reading}.{name}"] = torch.stack([layer[name] for layer in layers])
            for keep in keeps:
                found |= _kept(reading, layers, keep, n_groups)
        return found


def _statistics(scores: LayerScores, reading: str) -> Tensors:
    gates_TK, norm_TK = gate_weights(scores, reading), scores.output_norm_TK
    count_E, norm_E = scores.token_counts(), per_expert(scores, norm_TK)
    weighted_E = per_expert(scores, gates_TK * norm_TK)
    return {
        "expert_frequency": count_E,
        "pairwise_expert_frequency": count_E[:, None] + count_E,
        "ean_sum": norm_E,
        "ean_mean": mean_of(scores, norm_E).float(),
        "weighted_expert_frequency_sum": per_expert(scores, gates_TK),
        "weighted_ean_sum": weighted_E,
        "reap": mean_of(scores, weighted_E).float(),
        "max_activations": scores.max_activation_E,
    }


def _kept(reading: str, layers: Sequence[Tensors], keep: int, n_groups: int) -> Tensors:
    dropped = len(layers[0]["reap"]) - keep
    return {
        f"{reading}.kept.{ranking}.drop{dropped}": torch.tensor(
            [highest(layer[ranking].tolist(), keep, n_groups) for layer in layers]
        )
        for ranking in RANKED_BY
    }
