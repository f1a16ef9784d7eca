"""Mixtral: Llama's layers, the whole past or a sliding window of it."""

from __future__ import annotations

from typing import Any

from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)

from leanmoe_pruning.forward.families.base import ForwardFamily


def _window(config: Any, layer: int) -> int | None:
    window: int | None = config.sliding_window
    return window


FORWARD = ForwardFamily(
    config_class=MixtralConfig,
    attention_class=MixtralAttention,
    rotary_class=MixtralRotaryEmbedding,
    norm_class=MixtralRMSNorm,
    window=_window,
)
