"""OLMoE: every layer MoE, many small experts, never renormalised in vLLM.

vLLM's ``olmoe.py`` passes ``renormalize=False`` whatever ``norm_topk_prob`` says, and has no
tied head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.keys import HeadKeys, read_keys, softmax_share, stated
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    OWN_NAMES,
    QK_NORMS,
    BlockNames,
    block_family,
    model_names,
)

_NAMES = BlockNames("mlp", OWN_NAMES)


class _Keys(HeadKeys):
    other_spellings: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    num_experts: int = Field(gt=0, le=10_000)
    norm_topk_prob: bool = False


def _shape(config: Config) -> MoEShape:
    keys = read_keys(_Keys, config)
    return keys.moe_shape(keys.all_layers, keys.intermediate_size, renormalize=False)


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    return model_names(keys.num_hidden_layers, lambda layer: (*NORMS, *ATTENTION, *QK_NORMS))


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return stated(_Keys, config, "num_experts", keep)


OLMOE = block_family(
    _NAMES,
    name="olmoe",
    architectures=("OlmoeForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=softmax_share,
    cut_config=_cut_config,
    transfers=True,
    ties_head=False,
)
