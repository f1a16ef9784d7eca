"""Ratios of router weights, of a whole model or with experts masked: betas, means per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import Tick, no_tick
from leanmoe_pruning.scores.layer_scores import median_beta, weight_ratios

Kept = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class LayerRatios:
    """Median (NAEE's beta) and mean of one layer's ratios w_j / w_max."""

    layer: int
    beta: float
    mean: float

    @classmethod
    def of(cls, layer: int, routing: Routing) -> LayerRatios:
        ratios = weight_ratios(routing).astype(np.float64)
        return cls(layer, median_beta(routing), float(ratios.mean()) if len(ratios) else 0.0)


def measure_ratios(
    stream: DecoderStream, ids: Sequence[torch.Tensor], kept: Kept, tick: Tick = no_tick
) -> list[LayerRatios]:
    """Ratios of the model with only ``kept`` experts per layer, on its own activations.

    Masking logits equals cutting router rows, so the pruned checkpoint need not exist yet.
    """
    hidden = embed_all(stream, ids)
    found = []
    for layer in stream.layers():
        routed = step_(layer, hidden, kept.get(layer.index))
        if routed is not None:
            found.append(LayerRatios.of(layer.index, routed.routing))
        tick()
    return found
