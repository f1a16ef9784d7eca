"""The dense parent's tensors under their checkpoint names."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from leanmoe_pruning.reference.gguf_base import GGUFBase

_COPIED = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
)
PROJECTIONS = ("gate", "up", "down")


def model_tensors(base: GGUFBase) -> Iterator[tuple[str, torch.Tensor]]:
    """Embedding and last norm, bfloat16."""
    yield "model.embed_tokens.weight", base.tensor("token_embd.weight").bfloat16()
    yield "model.norm.weight", base.tensor("output_norm.weight").bfloat16()


def attention_tensors(base: GGUFBase, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Norms and attention of one layer, bfloat16, rotary rows in half-split order."""
    ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
    for name, source in _COPIED:
        yield f"{ours}.{name}.weight", base.tensor(f"{theirs}.{source}.weight").bfloat16()
    for name, key in (("q", "head_count"), ("k", "head_count_kv")):
        heads = base.field(f"llama.attention.{key}")
        weight = base.rotary(f"{theirs}.attn_{name}.weight", heads)
        yield f"{ours}.self_attn.{name}_proj.weight", weight.bfloat16()


def feed_forward(base: GGUFBase, layer: int, projection: str) -> torch.Tensor:
    """One projection of the dense feed-forward layer, bfloat16 ``[out, in]``."""
    return base.tensor(f"blk.{layer}.ffn_{projection}.weight").bfloat16()


def dense_tensors(base: GGUFBase) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole dense parent under Llama's checkpoint names."""
    yield from model_tensors(base)
    for layer in range(int(base.field("llama.block_count"))):
        yield from attention_tensors(base, layer)
        for projection in PROJECTIONS:
            name = f"model.layers.{layer}.mlp.{projection}_proj.weight"
            yield name, feed_forward(base, layer, projection)
