"""Every family whose layers can be computed, by the name that core/leanmoe/families gives it.

Those with code of their own have a file beside this one.
"""

from __future__ import annotations

from torch.nn import LayerNorm
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Attention,
    DeepseekV2RMSNorm,
    DeepseekV2RotaryEmbedding,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)
from transformers.models.olmoe.modeling_olmoe import (
    OlmoeAttention,
    OlmoeRMSNorm,
    OlmoeRotaryEmbedding,
)
from transformers.models.phimoe.modeling_phimoe import PhimoeAttention, PhimoeRotaryEmbedding
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeAttention,
    Qwen2MoeRMSNorm,
    Qwen2MoeRotaryEmbedding,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeAttention,
    Qwen3MoeRMSNorm,
    Qwen3MoeRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily, one_window, window_by_type
from leanmoe_pruning.forward.families.gpt_oss import FORWARD as GPT_OSS
from leanmoe_pruning.forward.families.granitemoe import FORWARD as GRANITEMOE

# Mixtral: Llama's layers, seeing the whole past or a sliding window of it.
MIXTRAL = ForwardFamily(
    config_class=MixtralConfig,
    attention_class=MixtralAttention,
    rotary_class=MixtralRotaryEmbedding,
    norm_class=MixtralRMSNorm,
    window=one_window,
)

# Qwen2-MoE: Llama's layers with biases, some of them sliding where the config says so.
QWEN2_MOE = ForwardFamily(
    config_class=Qwen2MoeConfig,
    attention_class=Qwen2MoeAttention,
    rotary_class=Qwen2MoeRotaryEmbedding,
    norm_class=Qwen2MoeRMSNorm,
    window=window_by_type,
)

# Qwen3-MoE: queries and keys normed head by head.
QWEN3_MOE = ForwardFamily(
    config_class=Qwen3MoeConfig,
    attention_class=Qwen3MoeAttention,
    rotary_class=Qwen3MoeRotaryEmbedding,
    norm_class=Qwen3MoeRMSNorm,
    window=one_window,
)

# OLMoE: queries and keys normed over all heads at once.
OLMOE = ForwardFamily(
    config_class=OlmoeConfig,
    attention_class=OlmoeAttention,
    rotary_class=OlmoeRotaryEmbedding,
    norm_class=OlmoeRMSNorm,
)

# DeepSeek-MoE, the first: transformers has no class for it, and its layers are Llama's.
DEEPSEEK = ForwardFamily(
    config_class=LlamaConfig,
    attention_class=LlamaAttention,
    rotary_class=LlamaRotaryEmbedding,
    norm_class=LlamaRMSNorm,
)

# DeepSeek-V2: latent attention.
DEEPSEEK_V2 = ForwardFamily(
    config_class=DeepseekV2Config,
    attention_class=DeepseekV2Attention,
    rotary_class=DeepseekV2RotaryEmbedding,
    norm_class=DeepseekV2RMSNorm,
)

# DeepSeek-V3 and R1: latent attention, as V2's but for the order of rotary pairs.
DEEPSEEK_V3 = ForwardFamily(
    config_class=DeepseekV3Config,
    attention_class=DeepseekV3Attention,
    rotary_class=DeepseekV3RotaryEmbedding,
    norm_class=DeepseekV3RMSNorm,
)

# PhiMoE: layer norms, and biases everywhere but in router and experts.
PHIMOE = ForwardFamily(
    config_class=PhimoeConfig,
    attention_class=PhimoeAttention,
    rotary_class=PhimoeRotaryEmbedding,
    norm_class=LayerNorm,
    window=one_window,
)

TABLE: dict[str, ForwardFamily] = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": OLMOE,
    "deepseek": DEEPSEEK,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "granitemoe": GRANITEMOE,
    "phimoe": PHIMOE,
    "gpt_oss": GPT_OSS,
}
