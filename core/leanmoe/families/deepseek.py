"""DeepSeek-MoE, the first: ordinary attention, first layers dense, shared experts ungated.

What its successors share with it is here too. vLLM runs all three by ``deepseek_v2.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from leanmoe.families.base import BlockParts, Config, Family, MoEShape
from leanmoe.families.keys import HeadKeys, ModelKeys, read_keys, stated
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    OWN_NAMES,
    BlockNames,
    block_family,
    feed_forward,
    model_names,
)

NAMES = BlockNames("mlp", OWN_NAMES)
PARTS = BlockParts(shared_expert="shared_experts")


class DeepseekKeys(ModelKeys):
    """What all three generations state."""

    count_key: ClassVar[str] = "n_routed_experts"

    n_routed_experts: int = Field(gt=0, le=10_000)
    moe_intermediate_size: PositiveInt
    n_shared_experts: PositiveInt | None = None
    first_k_dense_replace: NonNegativeInt = 0
    moe_layer_freq: PositiveInt = 1
    norm_topk_prob: bool = False
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    routed_scaling_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers vLLM builds with experts."""
        return tuple(
            layer
            for layer in self.all_layers
            if layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0
        )

    def shape(self) -> MoEShape:
        shape = self.moe_shape(self.moe_layers, self.moe_intermediate_size, self.norm_topk_prob)
        return replace(shape, scoring=self.scoring_func, routed_scale=self.routed_scaling_factor)

    def uniform_weight(self, n: int) -> float | None:
        """Softmax shares 1 among all; a sigmoid of zero is one half, shared where normed."""
        alone = self.scoring_func == "sigmoid" and not self.norm_topk_prob
        return self.routed_scaling_factor * (0.5 if alone else 1 / n)

    @property
    def attention(self) -> Iterable[str]:
        """The weights of a layer's attention."""
        return ATTENTION

    def other_names(self) -> list[str]:
        moe_layers, held = set(self.moe_layers), tuple(self.attention)
        shared = feed_forward(f"mlp.{PARTS.shared_expert}") if self.n_shared_experts else ()

        def parts(layer: int) -> Iterable[str]:
            return (*NORMS, *held, *(shared if layer in moe_layers else feed_forward("mlp")))

        return model_names(self.num_hidden_layers, parts)


class _Keys(DeepseekKeys, HeadKeys):
    pass


def uniform_weight_by(kind: type[DeepseekKeys]) -> Callable[[Config, int], float | None]:
    """A family's ``uniform_weight``, read from its own keys."""
    return lambda config, n: read_keys(kind, config).uniform_weight(n)


def family_by(kind: type[DeepseekKeys], name: str, architecture: str) -> Family:
    """A family whose tensors are named as the first one's and whose keys are ``kind``."""

    def cut_config(config: Config, keep: int) -> dict[str, Any]:
        return stated(kind, config, kind.count_key, keep)

    return block_family(
        NAMES,
        name=name,
        architectures=(architecture,),
        shape=lambda config: read_keys(kind, config).shape(),
        other_names=lambda config: read_keys(kind, config).other_names(),
        uniform_weight=uniform_weight_by(kind),
        cut_config=cut_config,
        parts=PARTS,
        ties_head=False,
    )


DEEPSEEK = family_by(_Keys, "deepseek", "DeepseekForCausalLM")
