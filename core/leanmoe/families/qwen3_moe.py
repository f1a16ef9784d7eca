"""Qwen3-MoE: some layers dense, no shared expert, normed queries and keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.keys import read_keys, softmax_share, stated
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    QK_NORMS,
    QKV_BIASES,
    block_family,
    feed_forward,
    model_names,
)
from leanmoe.families.qwen2_moe import NAMES, QwenKeys


class _Keys(QwenKeys):
    # As transformers 5 saves it.
    other_spellings: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    attention_bias: bool = False


def _shape(config: Config) -> MoEShape:
    return read_keys(_Keys, config).shape()


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    moe_layers = set(keys.moe_layers)
    attention = (*ATTENTION, *QK_NORMS, *(QKV_BIASES if keys.attention_bias else ()))

    def parts(layer: int) -> Iterable[str]:
        yield from (*NORMS, *attention)
        if layer not in moe_layers:
            yield from feed_forward("mlp")

    return model_names(keys.num_hidden_layers, parts, tied=keys.tie_word_embeddings)


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return stated(_Keys, config, "num_experts", keep)


QWEN3_MOE = block_family(
    NAMES,
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=softmax_share,
    cut_config=_cut_config,
    transfers=True,
)
