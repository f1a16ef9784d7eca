"""DeepSeek-V2: latent attention, experts in groups of which the router first picks some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from leanmoe.families.base import MoEShape
from leanmoe.families.deepseek import DeepseekKeys, family_by


class GroupKeys(DeepseekKeys):
    """What V2 and V3 add: groups of experts and latent attention.

    vLLM groups by ``n_group`` whatever ``topk_method`` says; a config without it fails there.
    """

    # Experts a group is judged by.
    judged_by: ClassVar[int] = 1

    n_group: PositiveInt
    topk_group: PositiveInt
    q_lora_rank: PositiveInt | None = None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt

    @property
    def least_per_group(self) -> int:
        return max(-(-self.num_experts_per_tok // self.topk_group), self.judged_by)

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group is {self.topk_group}, more than n_group {self.n_group}")
        if self.n_routed_experts % self.n_group:
            raise ValueError(
                f"n_routed_experts {self.n_routed_experts} is no multiple of n_group {self.n_group}"
            )
        if self.n_routed_experts // self.n_group < self.least_per_group:
            raise ValueError(
                f"a group has {self.n_routed_experts // self.n_group} experts and the router "
                f"needs {self.least_per_group} in each"
            )
        return self

    def shape(self) -> MoEShape:
        return replace(
            super().shape(),
            n_groups=self.n_group,
            least_per_group=self.least_per_group,
            top_groups=self.topk_group,
        )

    def uniform_weight(self, n: int) -> float | None:
        """As without groups, whose experts the runtime then puts into one."""
        return super().uniform_weight(n) if n >= self.judged_by else None

    @property
    def attention(self) -> Iterable[str]:
        whole, low = ("q_proj",), ("q_a_proj", "q_a_layernorm", "q_b_proj")
        query = whole if self.q_lora_rank is None else low
        shared = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
        return (f"self_attn.{part}.weight" for part in (*query, *shared))


class _Keys(GroupKeys):
    other_spellings: ClassVar[Mapping[str, str]] = {"num_experts": "n_routed_experts"}

    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"


DEEPSEEK_V2 = family_by(_Keys, "deepseek_v2", "DeepseekV2ForCausalLM")
