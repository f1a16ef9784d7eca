"""transformers' own classes for what is not the MoE block, weights given to them as loaded.

Imported when a model is first run: commands that only read bundles start without it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)


def make_config(values: dict[str, Any]) -> Any:
    """transformers' view of a ``config.json``, with PyTorch's attention kernel."""
    config = MixtralConfig(**values)
    config._attn_implementation = "sdpa"
    return config


def make_rotary(config: Any) -> Any:
    """The rotary embedding, which has no weights."""
    return MixtralRotaryEmbedding(config)


def empty_attention(config: Any, layer: int) -> Any:
    """One layer's attention without memory for its weights."""
    with torch.device("meta"):
        return MixtralAttention(config, layer).eval()


def make_norm(config: Any, weight: torch.Tensor) -> Any:
    """An RMS norm with its weight."""
    with torch.device("meta"):
        module = MixtralRMSNorm(weight.shape[0], eps=config.rms_norm_eps)
    module.load_state_dict({"weight": weight}, assign=True)
    return module.eval()
