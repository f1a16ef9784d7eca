"""The dense parent's tensors under their checkpoint names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from leanmoe_reference.gguf_base import GGUFBase

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


def common_config(base: GGUFBase) -> dict[str, Any]:
    """What the ``config.json`` of every model made of the parent says."""
    field = base.field
    heads = field("llama.attention.head_count")
    return {
        "attention_dropout": 0.0,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "head_dim": field("llama.embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "output_router_logits": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": field("llama.rope.freq_base"),
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": field("llama.vocab_size"),
    }
