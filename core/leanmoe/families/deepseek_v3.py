"""DeepSeek-V3 and R1: sigmoid scores, a bias per expert that only steers the choice.

Groups are judged by their two best experts. The files hold ``num_nextn_predict_layers`` more
layers for multi-token prediction, with experts of their own; a cut leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from leanmoe.families.base import Config, ConfigError, MoEShape
from leanmoe.families.deepseek import PARTS, uniform_weight_by
from leanmoe.families.deepseek_v2 import GroupKeys
from leanmoe.families.keys import read_keys, stated
from leanmoe.families.names import OWN_NAMES, BlockNames, block_family

_SPARE_KEY = "num_nextn_predict_layers"
_ROUTER = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_CORRECTION = "gate.e_score_correction_bias"
_NAMES = BlockNames("mlp", OWN_NAMES, ("gate.weight", _CORRECTION))


class _Keys(GroupKeys):
    judged_by: ClassVar[int] = 2
    other_spellings: ClassVar[Mapping[str, str]] = {
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": _SPARE_KEY,
    }

    scoring_func: Literal["sigmoid"]
    topk_method: Literal["noaux_tc"]
    # As in transformers, which fills in what a config leaves out.
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(default=2.5, gt=0, allow_inf_nan=False)
    num_nextn_predict_layers: NonNegativeInt = 0


def _read(config: Config) -> _Keys:
    """Its keys; transformers 5 leaves out two, and vLLM would run a softmax without a bias."""
    absent = {key: value for key, value in _ROUTER.items() if key not in config}
    if absent:
        said = ", ".join(f'"{key}": "{value}"' for key, value in absent.items())
        raise ConfigError(
            f"it has no key {' and none '.join(map(repr, absent))}, which transformers 5 leaves "
            "out when it saves and without which vLLM runs another router",
            f"add {said}",
        )
    return read_keys(_Keys, config)


def _shape(config: Config) -> MoEShape:
    return _read(config).shape()


def _other_names(config: Config) -> list[str]:
    return _read(config).other_names()


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    cut = stated(_Keys, config, "n_routed_experts", keep)
    return stated(_Keys, cut, _SPARE_KEY, 0)


def _spare_layers(config: Config) -> int:
    return _read(config).num_nextn_predict_layers


DEEPSEEK_V3 = block_family(
    _NAMES,
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=uniform_weight_by(_Keys),
    cut_config=_cut_config,
    spare_layers=_spare_layers,
    spare_key=_SPARE_KEY,
    ties_head=False,
    parts=replace(PARTS, correction=_CORRECTION),
)
