"""Mixtral: every layer is MoE, softmax over all experts, top-k renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.keys import HeadKeys, read_keys, softmax_share, stated
from leanmoe.families.names import (
    ATTENTION,
    MIXTRAL_NAMES,
    NORMS,
    BlockNames,
    block_family,
    model_names,
)

_NAMES = BlockNames("block_sparse_moe", MIXTRAL_NAMES)


class _Keys(HeadKeys):
    count_key: ClassVar[str] = "num_local_experts"
    other_spellings: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    num_local_experts: int = Field(gt=0, le=10_000)
    num_key_value_heads: PositiveInt
    # Our own forward pass needs it.
    rms_norm_eps: float = Field(gt=0, allow_inf_nan=False)
    sliding_window: PositiveInt | None = None


def shape(config: Config) -> MoEShape:
    keys = read_keys(_Keys, config)
    return keys.moe_shape(keys.all_layers, keys.intermediate_size, renormalize=True)


def other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    return model_names(
        keys.num_hidden_layers, lambda layer: (*NORMS, *ATTENTION), tied=keys.tie_word_embeddings
    )


def cut_config(config: Config, keep: int) -> dict[str, Any]:
    return stated(_Keys, config, "num_local_experts", keep)


MIXTRAL = block_family(
    _NAMES,
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    shape=shape,
    other_names=other_names,
    uniform_weight=softmax_share,
    cut_config=cut_config,
    transfers=True,
)
