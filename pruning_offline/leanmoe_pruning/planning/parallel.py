"""Tensor- and expert-parallel sizes a cut can be served with.

vLLM splits attention heads and every expert's hidden width over tensor-parallel ranks, and
copies key/value heads only where ranks are a multiple of them. Whole experts go to
expert-parallel ranks, the same number to each where the size divides every layer's count. Packed
experts are split in whole groups, and neither they nor stand-ins are shared out whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from leanmoe.checkpoint import Checkpoint
from leanmoe.sparse.sparse_format import GROUP

MOST_RANKS = 64


def tensor_parallel(checkpoint: Checkpoint, packed: bool) -> list[int]:
    """Sizes that divide heads and widths, up to 64; those of ``packed`` experts by groups."""
    config, shape = checkpoint.config, checkpoint.shape
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    widths = [shape.expert_ffn_size, int(config.get("shared_expert_intermediate_size") or 0)]
    if len(shape.moe_layers) < shape.n_layers:
        widths.append(int(config["intermediate_size"]))
    return [
        size
        for size in range(1, min(heads, MOST_RANKS) + 1)
        if heads % size == 0
        and (kv_heads % size == 0 or size % kv_heads == 0)
        and all(width % size == 0 for width in widths)
        and not (packed and shape.expert_ffn_size // size % GROUP)
    ]


def expert_parallel(counts: Iterable[int]) -> list[int]:
    """Sizes that divide the experts of every layer, up to 64."""
    held = sorted(set(counts))
    return [
        size
        for size in range(1, min(held[0], MOST_RANKS) + 1)
        if all(count % size == 0 for count in held)
    ]
