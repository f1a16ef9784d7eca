"""One layer's expert matrices as they are stored, copied so that they may be changed.

E experts, F expert hidden, D model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.checkpoints.shards import ShardReader


@dataclass(frozen=True)
class LayerWeights:
    """``tensors`` by their names in the files; ``views`` show single matrices ``[out, in]``.

    A change of a view changes the tensor that it lies in.
    """

    tensors: dict[str, torch.Tensor]
    views: dict[Projection, list[torch.Tensor]]

    @property
    def n_experts(self) -> int:
        return len(self.views["down_proj"])

    def zeros(self) -> float:
        """The share of weights that are zero."""
        held = [view for views in self.views.values() for view in views]
        used = sum(int(view.count_nonzero()) for view in held)
        return 1 - used / sum(view.numel() for view in held)


def read_layer(reader: ShardReader, checkpoint: Checkpoint, layer: int) -> LayerWeights:
    """The experts of one layer, in the dtype of the files."""
    family, own = checkpoint.family, checkpoint.layers[layer]
    shape = replace(checkpoint.shape, n_routed_experts=own.n_experts)
    sizes = family.block_sizes(shape, layer)

    def read(name: str) -> torch.Tensor:
        return reader.read(name, sizes[name]).clone()

    if family.stacked:
        _, fused, down = sizes
        tensors = {fused: read(fused), down: read(down)}
        return LayerWeights(tensors, _stacked_views(tensors[fused], tensors[down]))
    names = {
        projection: [family.expert_name(layer, e, projection) for e in range(own.n_experts)]
        for projection in PROJECTIONS
    }
    tensors = {name: read(name) for held in names.values() for name in held}
    views = {projection: [tensors[n] for n in held] for projection, held in names.items()}
    return LayerWeights(tensors, views)


def _stacked_views(
    fused_EGD: torch.Tensor, down_EDF: torch.Tensor
) -> dict[Projection, list[torch.Tensor]]:
    gates, ups = fused_EGD.chunk(2, dim=1)
    return {"gate_proj": list(gates), "up_proj": list(ups), "down_proj": list(down_EDF)}
