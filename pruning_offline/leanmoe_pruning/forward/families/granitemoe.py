"""GraniteMoe: experts in stacked tensors, and a multiplier for every stream."""

from __future__ import annotations

from typing import Any

from transformers import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import (
    GraniteMoeAttention,
    GraniteMoeRMSNorm,
    GraniteMoeRotaryEmbedding,
)

from leanmoe.families import Family, MoEShape
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.families.base import ForwardFamily, Scales
from leanmoe_pruning.forward.weights import Weights


def _scales(config: Any) -> Scales:
    return Scales(
        embedding=config.embedding_multiplier,
        residual=config.residual_multiplier,
        logits=1.0 / config.logits_scaling,
    )


def _experts(weights: Weights, family: Family, layer: int, shape: MoEShape) -> Experts:
    _, inner, outer = family.block_sizes(shape, layer)
    gate, up = weights.product(inner).chunk(2, dim=1)
    return Experts(list(gate), list(up), list(weights.product(outer)))


FORWARD = ForwardFamily(
    config_class=GraniteMoeConfig,
    attention_class=GraniteMoeAttention,
    rotary_class=GraniteMoeRotaryEmbedding,
    norm_class=GraniteMoeRMSNorm,
    scales=_scales,
    experts=_experts,
)
