"""The model families LeanMoE knows, one file each."""

from __future__ import annotations

from leanmoe.errors import CheckpointError
from leanmoe.families.base import Config, ExpertTensor, Family, MoEShape
from leanmoe.families.deepseek import DEEPSEEK
from leanmoe.families.deepseek_v2 import DEEPSEEK_V2
from leanmoe.families.deepseek_v3 import DEEPSEEK_V3
from leanmoe.families.gpt_oss import GPT_OSS
from leanmoe.families.granitemoe import GRANITEMOE
from leanmoe.families.mixtral import MIXTRAL
from leanmoe.families.olmoe import OLMOE
from leanmoe.families.phimoe import PHIMOE
from leanmoe.families.qwen2_moe import QWEN2_MOE
from leanmoe.families.qwen3_moe import QWEN3_MOE

FAMILIES: tuple[Family, ...] = (
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    DEEPSEEK,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GRANITEMOE,
    PHIMOE,
    GPT_OSS,
)

__all__ = ["FAMILIES", "Config", "ExpertTensor", "Family", "MoEShape", "family_of"]

_EXPERT_COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def family_of(config: Config, where: str) -> Family:
    """The family of a Hugging Face ``config.json``; ``where`` names it in the error."""
    named = config.get("architectures")
    if named is not None and not (
        isinstance(named, list) and all(isinstance(n, str) for n in named)
    ):
        raise CheckpointError(
            f"{where} names architectures {named!r}, expected a list of names; take the config of "
            "the original model"
        )
    architectures = named or ["(none named)"]
    for family in FAMILIES:
        if architectures[0] in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    if not any(key in config for key in _EXPERT_COUNT_KEYS):
        raise CheckpointError(
            f"{where} is a dense model ({architectures[0]}): it has no experts to prune or skip; "
            f"give a Mixture-of-Experts checkpoint of one of: {known}"
        )
    raise CheckpointError(
        f"{where} has the architecture {architectures[0]}, which LeanMoE does not know; "
        f"known: {known}"
    )
