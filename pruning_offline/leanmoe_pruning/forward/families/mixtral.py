"""Mixtral: Llama's layers, seeing the whole past or a sliding window of it."""

from __future__ import annotations

from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily, one_window

FORWARD = ForwardFamily(
    config_class=MixtralConfig,
    attention_class=MixtralAttention,
    rotary_class=MixtralRotaryEmbedding,
    norm_class=MixtralRMSNorm,
    window=one_window,
)
