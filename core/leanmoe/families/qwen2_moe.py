"""Qwen2-MoE (Qwen1.5-MoE too): some layers dense, a gated shared expert beside the routed.

vLLM's ``qwen2_moe.py`` renormalises where ``norm_topk_prob`` says so; the default is not to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from leanmoe.families.base import BlockParts, Config, MoEShape
from leanmoe.families.keys import HeadKeys, read_keys, softmax_share, stated
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    OWN_NAMES,
    QKV_BIASES,
    BlockNames,
    block_family,
    feed_forward,
    model_names,
)

NAMES = BlockNames("mlp", OWN_NAMES)
_PARTS = BlockParts(shared_expert="shared_expert", shared_gate="shared_expert_gate.weight")


class QwenKeys(HeadKeys):
    """What Qwen2-MoE and Qwen3-MoE have in common."""

    num_experts: int = Field(gt=0, le=10_000)
    moe_intermediate_size: PositiveInt
    norm_topk_prob: bool = False
    decoder_sparse_step: PositiveInt = 1
    mlp_only_layers: list[NonNegativeInt] | None = None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers vLLM builds with experts."""
        dense = set(self.mlp_only_layers or ())
        return tuple(
            layer
            for layer in self.all_layers
            if layer not in dense and (layer + 1) % self.decoder_sparse_step == 0
        )

    def shape(self) -> MoEShape:
        return self.moe_shape(self.moe_layers, self.moe_intermediate_size, self.norm_topk_prob)


class _Keys(QwenKeys):
    shared_expert_intermediate_size: NonNegativeInt


def _shape(config: Config) -> MoEShape:
    return read_keys(_Keys, config).shape()


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    moe_layers = set(keys.moe_layers)
    shared = (
        feed_forward(f"mlp.{_PARTS.shared_expert}") if keys.shared_expert_intermediate_size else ()
    )

    def parts(layer: int) -> Iterable[str]:
        yield from (*NORMS, *ATTENTION, *QKV_BIASES)
        if layer in moe_layers:
            yield from (f"mlp.{_PARTS.shared_gate}", *shared)
        else:
            yield from feed_forward("mlp")

    return model_names(keys.num_hidden_layers, parts, tied=keys.tie_word_embeddings)


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return stated(_Keys, config, "num_experts", keep)


QWEN2_MOE = block_family(
    NAMES,
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=softmax_share,
    cut_config=_cut_config,
    parts=_PARTS,
    transfers=True,
)
