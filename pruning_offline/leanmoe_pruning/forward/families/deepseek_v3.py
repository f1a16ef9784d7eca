"""DeepSeek-V3 and R1: latent attention, as V2's but for the order of rotary pairs."""

from __future__ import annotations

from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily

FORWARD = ForwardFamily(
    config_class=DeepseekV3Config,
    attention_class=DeepseekV3Attention,
    rotary_class=DeepseekV3RotaryEmbedding,
    norm_class=DeepseekV3RMSNorm,
)
