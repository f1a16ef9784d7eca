"""Qwen2-MoE: some layers dense, a shared expert behind a gate of its own in the others."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeAttention,
    Qwen2MoeRMSNorm,
    Qwen2MoeRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily


def _window(config: Any, layer: int) -> int | None:
    sliding = config.layer_types[layer] == "sliding_attention"
    window: int | None = config.sliding_window if sliding else None
    return window


FORWARD = ForwardFamily(
    config_class=Qwen2MoeConfig,
    attention_class=Qwen2MoeAttention,
    rotary_class=Qwen2MoeRotaryEmbedding,
    norm_class=Qwen2MoeRMSNorm,
    window=_window,
)
