"""DeepSeek-V3 and R1: sigmoid scores, a bias per expert that only steers the choice.

Groups are judged by their two best experts. The files hold ``num_nextn_predict_layers`` more
layers for multi-token prediction, with experts of their own; a cut leaves them out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from leanmoe.families.base import Config, MoEShape
from leanmoe.families.deepseek import PARTS, uniform_weight_by
from leanmoe.families.deepseek_v2 import GroupKeys
from leanmoe.families.keys import read_keys
from leanmoe.families.names import OWN_NAMES, BlockNames, block_family

_CORRECTION = "gate.e_score_correction_bias"
_NAMES = BlockNames("mlp", OWN_NAMES, ("gate.weight", _CORRECTION))


class _Keys(GroupKeys):
    judged_by: ClassVar[int] = 2

    # vLLM takes a config without these two for a softmax router without a bias.
    scoring_func: Literal["sigmoid"]
    topk_method: Literal["noaux_tc"]
    # As in transformers, which fills in what a config leaves out.
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(default=2.5, gt=0, allow_inf_nan=False)
    num_nextn_predict_layers: NonNegativeInt = 0


def _shape(config: Config) -> MoEShape:
    return read_keys(_Keys, config).shape()


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    return keys.other_names(keys.attention)


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return {**config, "n_routed_experts": keep, "num_nextn_predict_layers": 0}


def _spare_layers(config: Config) -> int:
    return read_keys(_Keys, config).num_nextn_predict_layers


DEEPSEEK_V3 = block_family(
    _NAMES,
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=uniform_weight_by(_Keys),
    cut_config=_cut_config,
    spare_layers=_spare_layers,
    parts=replace(PARTS, correction=_CORRECTION),
)
