"""PhiMoE: layer norms, and biases everywhere but in router and experts."""

from __future__ import annotations

from torch.nn import LayerNorm
from transformers import PhimoeConfig
from transformers.models.phimoe.modeling_phimoe import PhimoeAttention, PhimoeRotaryEmbedding

from leanmoe_pruning.forward.families.base import ForwardFamily, one_window

FORWARD = ForwardFamily(
    config_class=PhimoeConfig,
    attention_class=PhimoeAttention,
    rotary_class=PhimoeRotaryEmbedding,
    norm_class=LayerNorm,
    window=one_window,
)
