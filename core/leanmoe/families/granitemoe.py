"""GraniteMoe: every layer MoE, experts stacked in two tensors, softmax over the chosen."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.keys import HeadKeys, read_keys, softmax_share
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    OWN_NAMES,
    StackedNames,
    block_family,
    model_names,
)

_NAMES = StackedNames(
    "block_sparse_moe",
    OWN_NAMES,
    ("router.layer.weight", "input_linear.weight", "output_linear.weight"),
)


class _Keys(HeadKeys):
    count_key: ClassVar[str] = "num_local_experts"

    num_local_experts: int = Field(gt=0, le=10_000)


def _shape(config: Config) -> MoEShape:
    keys = read_keys(_Keys, config)
    return keys.moe_shape(keys.all_layers, keys.intermediate_size, renormalize=True)


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    return model_names(
        keys.num_hidden_layers, lambda layer: (*NORMS, *ATTENTION), tied=keys.tie_word_embeddings
    )


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return {**config, "num_local_experts": keep}


GRANITEMOE = block_family(
    _NAMES,
    name="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=softmax_share,
    cut_config=_cut_config,
    transfers=True,
)
