"""What becomes of one MoE layer's tensors under its plan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.families.base import ExpertTensor, Projection
from leanmoe.layout import transfer_name
from leanmoe.stand_ins import Part, stand_in_name, stand_in_sizes
from leanmoe_pruning.checkpoints.fp8 import FP8, SCALE
from leanmoe_pruning.checkpoints.shards import TensorInfo
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.cutting.pieces import (
    Copied,
    Given,
    HeldTensors,
    Mixed,
    MixedRows,
    Piece,
    Rows,
    Scaled,
    Zeros,
)


class LayerCut:
    """The pieces that take the place of each tensor of one layer's block."""

    def __init__(
        self, checkpoint: Checkpoint, layer: int, plan: LayerPlan, held: HeldTensors
    ) -> None:
        self._held = held
        self._checkpoint, self._family = checkpoint, checkpoint.family
        self._layer, self._plan = layer, plan
        self._kept = plan.kept
        self._gate = self._family.gate_name(layer)

    def of_rows(self, info: TensorInfo) -> list[Piece]:
        """For a tensor whose first dimension counts experts."""
        if self._plan.merge is not None:
            return self._merged_rows(info, self._plan.merge)
        shape = (len(self._kept), *info.shape[1:])
        cut = TensorInfo(info.name, info.dtype, shape)
        if self._plan.condense is None:
            return [Rows(cut, info.name, self._kept)]
        if len(info.shape) < 3:
            return [Zeros(cut)]
        factors = tuple(map(self._folded, self._kept)) if self._is_stacked_down(info.name) else None
        return [Rows(cut, info.name, self._kept, factors)]

    def of_expert(self, info: TensorInfo, part: ExpertTensor) -> list[Piece]:
        """For a tensor of a single expert: a projection's weight, or its scales."""
        if self._plan.merge is not None:
            return self._merged_expert(info, part, self._plan.merge)
        if part.expert not in self._kept:
            return []
        place = self._kept.index(part.expert)
        renamed = replace(info, name=self._name(place, part.projection) + _ending(info))
        # A constant goes into the scales where there are any.
        down = part.projection == "down_proj" and info.dtype != FP8
        if self._plan.condense is not None and down:
            return [Scaled(renamed, info.name, self._folded(part.expert))]
        return [Copied(renamed, info.name)]

    def of_shared(self, info: TensorInfo) -> list[Piece] | None:
        """For a tensor of the shared expert; ``None`` where it stays as it is.

        A gate of zeros gives every token one half, and the rest lies in ``down_proj``.
        """
        if self._plan.shared_gate is None:
            return None
        if info.name == self._checkpoint.shared_gate(self._layer):
            return [Zeros(info)]
        if info.name == f"{self._checkpoint.shared_expert(self._layer)}.down_proj.weight":
            return [Scaled(info, info.name, 2 * self._plan.shared_gate)]
        return None

    def _folded(self, expert: int) -> float:
        """What an expert's output is multiplied by beside the even weight the router gives it."""
        assert self._plan.condense is not None
        config, count = self._checkpoint.config, len(self._kept)
        even = self._family.uniform_weight(config, count)
        assert even is not None, "the plan was checked"
        return self._plan.condense[expert] / even

    def _is_stacked_down(self, name: str) -> bool:
        # The order of block_sizes: router, gate over up, down.
        return name == list(self._family.block_sizes(self._checkpoint.shape, self._layer))[-1]

    def _merged_rows(self, info: TensorInfo, merge: Merge) -> list[Piece]:
        if info.name != self._gate:
            shape = (len(merge.experts), *info.shape[1:])
            return [MixedRows(replace(info, shape=shape), info.name, merge.experts)]
        name = transfer_name(self._family.block_prefix(self._layer))
        size = (len(merge.router), len(merge.router[0]))
        transfer = Given(TensorInfo(name, StoredType.F32, size), merge.router)
        return [Copied(info, info.name), transfer]

    def _merged_expert(self, info: TensorInfo, part: ExpertTensor, merge: Merge) -> list[Piece]:
        """Expert j of the output stands where expert j of the source stood."""
        if info.dtype == FP8:
            raise InputError(
                f"layer {self._layer} of {self._checkpoint.path} cannot be merged: its experts "
                "are float8, whose sums would be rounded to 3 bits; restore the checkpoint to "
                "plain bf16 weights first"
            )
        if part.expert >= len(merge.experts):
            return []
        name_of = partial(self._name, projection=part.projection)
        return [Mixed(info, self._layer, name_of, merge.experts[part.expert], self._held)]

    def _name(self, expert: int, projection: Projection) -> str:
        return self._family.expert_name(self._layer, expert, projection)


class StandInCut(LayerCut):
    """A layer whose router stays whole and whose removed experts get a stand-in each.

    The stand-in's tensors come from where the reader finds new ones, into the shard of the removed
    expert's ``down_proj``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layer: int,
        plan: LayerPlan,
        held: HeldTensors,
        rank: int,
        dtype: StoredType,
    ) -> None:
        super().__init__(checkpoint, layer, plan, held)
        self._sizes = stand_in_sizes(checkpoint.shape.hidden_size, rank)
        self._dtype = dtype

    def of_rows(self, info: TensorInfo) -> list[Piece]:
        return [Copied(info, info.name)]

    def of_expert(self, info: TensorInfo, part: ExpertTensor) -> list[Piece]:
        if part.expert in self._kept:
            return [Copied(info, info.name)]
        if part.projection != "down_proj" or info.name.endswith(SCALE):
            return []
        return [self._stand_in(part.expert, one, size) for one, size in self._sizes.items()]

    def _stand_in(self, expert: int, part: Part, size: tuple[int, ...]) -> Piece:
        name = stand_in_name(self._family, self._layer, expert, part)
        return Copied(TensorInfo(name, self._dtype, size), name)


def _ending(info: TensorInfo) -> str:
    return SCALE if info.name.endswith(SCALE) else ""
