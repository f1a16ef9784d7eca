"""One layer's expert matrices as they are stored, ready to be changed in place.

E experts, F expert hidden, D model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.checkpoints.fp8 import FP8, Block, block_of, restored, scale_of
from leanmoe_pruning.checkpoints.shards import ShardReader

Views = dict[Projection, list[torch.Tensor]]
# Families whose stacked tensors are [E, in, out], with rows of gate and up projection in turn.
_IN_TURN = ("gpt_oss",)


@dataclass(frozen=True)
class LayerWeights:
    """``tensors`` by their names in the files; ``views`` show single matrices ``[out, in]``.

    A change of a view changes the tensor that it lies in. Float8 matrices have ``scales``.
    """

    tensors: dict[str, torch.Tensor]
    views: Views
    scales: Views = field(default_factory=dict)
    block: Block = (128, 128)
    # By expert, what else has a number per hidden channel: biases of gate and up projection.
    per_hidden: tuple[tuple[torch.Tensor, ...], ...] = ()

    @property
    def n_experts(self) -> int:
        return len(self.views["down_proj"])

    def meant(self, projection: Projection, expert: int) -> torch.Tensor:
        """The numbers that a matrix stands for."""
        view = self.views[projection][expert]
        if view.dtype != FP8.torch:
            return view
        return restored(view, self.scales[projection][expert], self.block)

    def zero_(self, projection: Projection, expert: int, drop: torch.Tensor) -> None:
        """Zero the weights of a matrix where ``drop`` says so."""
        view = self.views[projection][expert]
        # torch fills no float8; its zero is the byte 0.
        (view.view(torch.uint8) if view.dtype == FP8.torch else view).masked_fill_(drop, 0)

    @property
    def reorders_hidden(self) -> bool:
        """Whether hidden channels can change places: scales of float8 blocks hold them fast."""
        return all(view.dtype != FP8.torch for views in self.views.values() for view in views)

    def reorder_hidden_(self, expert: int, order_F: torch.Tensor) -> None:
        """Give hidden channels other places, new position to old; the expert computes the same."""
        for projection in ("gate_proj", "up_proj"):
            rows_FD = self.views[projection][expert]
            rows_FD.copy_(rows_FD[order_F])
        for vector_F in self.per_hidden[expert] if self.per_hidden else ():
            vector_F.copy_(vector_F[order_F])
        down_DF = self.views["down_proj"][expert]
        down_DF.copy_(down_DF[:, order_F])

    def zeros(self) -> float:
        """The share of weights that are zero."""
        held = [view for views in self.views.values() for view in views]
        used = sum(int((view != 0).sum()) for view in held)
        return 1 - used / sum(view.numel() for view in held)


def check_changeable(checkpoint: Checkpoint) -> None:
    """Raise where single weights are codes that zero or a new value cannot simply be put in."""
    if checkpoint.shape.packed:
        raise CheckpointError(
            f"{checkpoint.path} holds its experts in blocks of 4-bit numbers, whose single weights "
            "cannot be changed; restore the checkpoint to plain bf16 weights first"
        )


def check_plain(reader: ShardReader, names: Iterable[str], what: str) -> None:
    """Raise where ``what`` would give these weights new values and the files hold float8."""
    coded = next((name for name in names if reader.info(name).dtype == FP8), None)
    if coded is not None:
        raise CheckpointError(
            f"{reader.directory} holds {coded} in float8, and {what} gives it new values, which "
            "float8 would round away; restore the checkpoint to plain bf16 weights first"
        )


def read_layer(reader: ShardReader, checkpoint: Checkpoint, layer: int) -> LayerWeights:
    """The experts of one layer, in the dtype of the files."""
    family, own = checkpoint.family, checkpoint.layers[layer]
    shape = replace(checkpoint.shape, n_routed_experts=own.n_experts)
    sizes = family.block_sizes(shape, layer)
    if family.stacked:
        fused, down = (name for name, size in sizes.items() if len(size) == 3)
        bias = [name for name in sizes if name == f"{fused}_bias"]
        tensors = {name: reader.read(name, sizes[name]) for name in (fused, down, *bias)}
        split = _in_turn if family.name in _IN_TURN else _gate_over_up
        views = split(tensors[fused], tensors[down])
        in_turn = tuple((row_G[0::2], row_G[1::2]) for name in bias for row_G in tensors[name])
        return LayerWeights(tensors, views, per_hidden=in_turn)
    names = {
        projection: [family.expert_name(layer, e, projection) for e in range(own.n_experts)]
        for projection in PROJECTIONS
    }
    tensors = {name: reader.read(name, sizes[name]) for held in names.values() for name in held}
    return LayerWeights(
        tensors,
        {projection: [tensors[name] for name in held] for projection, held in names.items()},
        {projection: _scales(reader, held) for projection, held in names.items()},
        block_of(checkpoint),
    )


def _scales(reader: ShardReader, names: list[str]) -> list[torch.Tensor]:
    scales = (scale_of(name, reader) for name in names)
    return [torch.ones(1, 1) if name is None else reader.read(name) for name in scales]


def _gate_over_up(fused_EGD: torch.Tensor, down_EDF: torch.Tensor) -> Views:
    gates, ups = fused_EGD.chunk(2, dim=1)
    return {"gate_proj": list(gates), "up_proj": list(ups), "down_proj": list(down_EDF)}


def _in_turn(fused_EDG: torch.Tensor, down_EFD: torch.Tensor) -> Views:
    fused_EGD = fused_EDG.transpose(1, 2)
    return {
        "gate_proj": list(fused_EGD[:, 0::2]),
        "up_proj": list(fused_EGD[:, 1::2]),
        "down_proj": list(down_EFD.transpose(1, 2)),
    }
