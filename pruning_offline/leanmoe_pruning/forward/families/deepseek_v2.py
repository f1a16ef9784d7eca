"""DeepSeek-V2: latent attention."""

from __future__ import annotations

from transformers import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Attention,
    DeepseekV2RMSNorm,
    DeepseekV2RotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily

FORWARD = ForwardFamily(
    config_class=DeepseekV2Config,
    attention_class=DeepseekV2Attention,
    rotary_class=DeepseekV2RotaryEmbedding,
    norm_class=DeepseekV2RMSNorm,
)
