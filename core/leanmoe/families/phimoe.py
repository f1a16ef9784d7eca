"""PhiMoE: every layer MoE, biases everywhere, layer norm, and a router of its own.

Its *sparsemixer* picks two experts one after the other and weighs each by a softmax over the
logits close to it, so both weights are near 1 and level 1 rarely skips anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.keys import HeadKeys, read_keys, stated
from leanmoe.families.names import (
    ATTENTION,
    MIXTRAL_NAMES,
    NORMS,
    BlockNames,
    block_family,
    model_names,
)

_NAMES = BlockNames("block_sparse_moe", MIXTRAL_NAMES)
_SERVED_AS = "PhiMoEForCausalLM"


class _Keys(HeadKeys):
    count_key: ClassVar[str] = "num_local_experts"

    num_local_experts: int = Field(gt=0, le=10_000)
    # vLLM's routing function asserts it.
    num_experts_per_tok: Literal[2]


def _shape(config: Config) -> MoEShape:
    keys = read_keys(_Keys, config)
    shape = keys.moe_shape(keys.all_layers, keys.intermediate_size, renormalize=False)
    return replace(shape, scoring="sparsemixer")


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    weights = model_names(keys.num_hidden_layers, lambda layer: (*NORMS, *ATTENTION))
    # All but the embedding, which comes first.
    return [*weights, *(f"{name.removesuffix('.weight')}.bias" for name in weights[1:])]


def _uniform_weight(config: Config, n: int) -> None:
    return None


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    # transformers writes PhimoeForCausalLM, under which vLLM has no model of its own.
    cut = stated(_Keys, config, "num_local_experts", keep)
    return {**cut, "architectures": [_SERVED_AS]}


PHIMOE = block_family(
    _NAMES,
    name="phimoe",
    architectures=(_SERVED_AS, "PhimoeForCausalLM"),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=_uniform_weight,
    cut_config=_cut_config,
    fixed_top_k=True,
    ties_head=False,
)
