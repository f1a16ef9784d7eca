"""gpt-oss: attention with sinks, every other layer sliding, experts of clamped SwiGLUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssRMSNorm,
    GptOssRotaryEmbedding,
)

from leanmoe.families import Family, MoEShape
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.families.base import ForwardFamily, window_by_type
from leanmoe_pruning.forward.weights import Weights

# What vLLM's "swigluoai" has built in.
_SLOPE, _LIMIT = 1.702, 7.0


@dataclass(frozen=True)
class ClampedExperts(Experts):
    """(up + 1) * gate * sigmoid(1.702 gate), both clamped at 7, with biases all through."""

    gate_bias: Sequence[torch.Tensor]
    up_bias: Sequence[torch.Tensor]
    down_bias: Sequence[torch.Tensor]

    def hidden(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """What ``down_proj`` is multiplied with, ``[T, F]`` in the weights' dtype."""
        x_TD = x_TD.to(self.dtype)
        gate_TF = functional.linear(x_TD, self.gate_proj[expert], self.gate_bias[expert])
        up_TF = functional.linear(x_TD, self.up_proj[expert], self.up_bias[expert])
        gate_TF = gate_TF.clamp(max=_LIMIT)
        return (up_TF.clamp(-_LIMIT, _LIMIT) + 1) * gate_TF * torch.sigmoid(_SLOPE * gate_TF)

    def project(self, expert: int, hidden_TF: torch.Tensor) -> torch.Tensor:
        """f_expert(x) from ``hidden``, float32 ``[T, D]``."""
        return functional.linear(hidden_TF, self.down_proj[expert], self.down_bias[expert]).float()


def _experts(weights: Weights, family: Family, layer: int, shape: MoEShape) -> Experts:
    prefix = f"{family.block_prefix(layer)}.experts"
    gates, ups, downs = [], [], []
    # Rows of gate and up projection take turns.
    for inner_DF in _matrices(weights, f"{prefix}.gate_up_proj", shape):
        gates.append(inner_DF[:, 0::2].t().contiguous())
        ups.append(inner_DF[:, 1::2].t().contiguous())
    for outer_FD in _matrices(weights, f"{prefix}.down_proj", shape):
        downs.append(outer_FD.t().contiguous())
    bias = weights.product(f"{prefix}.gate_up_proj_bias")
    return ClampedExperts(
        gates,
        ups,
        downs,
        gate_bias=list(bias[:, 0::2]),
        up_bias=list(bias[:, 1::2]),
        down_bias=list(weights.product(f"{prefix}.down_proj_bias")),
    )


def _matrices(weights: Weights, name: str, shape: MoEShape) -> Iterator[torch.Tensor]:
    """Each expert's matrix, inputs by outputs."""
    if not shape.packed:
        yield from weights.product(name)
        return
    blocks, scales = (weights.reader.read(f"{name}_{part}") for part in ("blocks", "scales"))
    for codes, scale in zip(blocks, scales, strict=True):
        # One by one: plain numbers take four times the room.
        yield convert_moe_packed_tensors(codes[None], scale[None], dtype=weights.compute)[0]


FORWARD = ForwardFamily(
    config_class=GptOssConfig,
    attention_class=GptOssAttention,
    rotary_class=GptOssRotaryEmbedding,
    norm_class=GptOssRMSNorm,
    window=window_by_type,
    experts=_experts,
    attention="eager",
)
