"""Qwen2-MoE: Llama's layers with biases, some of them sliding where the config says so."""

from __future__ import annotations

from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeAttention,
    Qwen2MoeRMSNorm,
    Qwen2MoeRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily, window_by_type

FORWARD = ForwardFamily(
    config_class=Qwen2MoeConfig,
    attention_class=Qwen2MoeAttention,
    rotary_class=Qwen2MoeRotaryEmbedding,
    norm_class=Qwen2MoeRMSNorm,
    window=window_by_type,
)
