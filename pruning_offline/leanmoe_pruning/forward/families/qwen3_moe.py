"""Qwen3-MoE: queries and keys normed head by head."""

from __future__ import annotations

from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeAttention,
    Qwen3MoeRMSNorm,
    Qwen3MoeRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily, one_window

FORWARD = ForwardFamily(
    config_class=Qwen3MoeConfig,
    attention_class=Qwen3MoeAttention,
    rotary_class=Qwen3MoeRotaryEmbedding,
    norm_class=Qwen3MoeRMSNorm,
    window=one_window,
)
