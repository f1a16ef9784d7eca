"""Weights in 8 bits with a scale per block, as DeepSeek-V3 and others release them.

``NAME`` holds float8 (e4m3) and ``NAME_scale_inv`` what each block of 128 x 128, or as the
config says, is multiplied by. A cut copies both; whoever computes gets their product.
"""

from __future__ import annotations

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import own_quantization
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.later import torch

FP8 = StoredType.F8_E4M3
SCALE = "_scale_inv"
Block = tuple[int, int]


def block_of(checkpoint: Checkpoint) -> Block:
    """Rows and columns of a block, (128, 128) where the config says nothing."""
    blocks = Blocks.of(own_quantization(checkpoint.config), str(checkpoint.path / "config.json"))
    return blocks.rows, blocks.columns


def scale_of(name: str, reader: ShardReader) -> str | None:
    """The name of a tensor's scales; ``None`` where it is stored plainly."""
    return name + SCALE if reader.info(name).dtype == FP8 else None


def scaled_weight(name: str, reader: ShardReader) -> str | None:
    """The name of the weight that a tensor scales; ``None`` where it is not a scale."""
    weight = name.removesuffix(SCALE)
    held = weight != name and weight in reader
    return weight if held and scale_of(weight, reader) else None


def check_scales(reader: ShardReader, block: Block) -> None:
    """Raise unless every float8 tensor has its scales, of the right shape."""
    for name in reader.names:
        scale = scale_of(name, reader)
        if scale is None:
            continue
        shape = reader.info(name).shape
        if len(shape) != 2 or scale not in reader:
            raise CheckpointError(
                f"tensor {name} in {reader.place(name)} is float8 and has no blocks with scales "
                f"({scale}); restore the checkpoint to plain bf16 weights first"
            )
        reader.check_weight(scale, [-(-n // size) for n, size in zip(shape, block, strict=True)])


def restored(weight_RC: torch.Tensor, scale: torch.Tensor, block: Block) -> torch.Tensor:
    """The weight that was meant, float32."""
    rows, columns = weight_RC.shape
    grown = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weight_RC.float() * grown[:rows, :columns]
