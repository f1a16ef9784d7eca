"""OLMoE: queries and keys normed over all heads at once."""

from __future__ import annotations

from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import (
    OlmoeAttention,
    OlmoeRMSNorm,
    OlmoeRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily

FORWARD = ForwardFamily(
    config_class=OlmoeConfig,
    attention_class=OlmoeAttention,
    rotary_class=OlmoeRotaryEmbedding,
    norm_class=OlmoeRMSNorm,
)
