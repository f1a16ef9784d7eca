"""DeepSeek-MoE, the first: transformers has no class for it, and its layers are Llama's."""

from __future__ import annotations

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily

FORWARD = ForwardFamily(
    config_class=LlamaConfig,
    attention_class=LlamaAttention,
    rotary_class=LlamaRotaryEmbedding,
    norm_class=LlamaRMSNorm,
)
