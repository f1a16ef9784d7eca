"""gpt-oss: every layer MoE, experts stacked with biases, a router with one, attention sinks.

The released files hold the experts' matrices in MXFP4, blocks of 32 numbers of 4 bits with a
scale each; others hold them plain. vLLM passes over names it does not know when it loads this
family, so that nothing would stop it at layers that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from leanmoe.families.base import BlockParts, Config, MoEShape, Size
from leanmoe.families.keys import HeadKeys, read_keys, stated
from leanmoe.families.names import (
    ATTENTION,
    NORMS,
    OWN_NAMES,
    StackedNames,
    block_family,
    model_names,
)

BLOCK = 32
_ROUTER = ("router.weight", "router.bias")
_INNER, _OUTER = "experts.gate_up_proj", "experts.down_proj"
_BIASES = (f"{_INNER}_bias", f"{_OUTER}_bias")
_PACKED = tuple(f"{one}_{part}" for one in (_INNER, _OUTER) for part in ("blocks", "scales"))


@dataclass(frozen=True)
class _Names(StackedNames):
    """Both ways of storing: ``rows`` names what either has."""

    def sizes(self, shape: MoEShape, layer: int) -> dict[str, Size]:
        count, narrow, wide = shape.n_routed_experts, shape.hidden_size, shape.expert_ffn_size
        sizes: dict[str, Size] = {
            _ROUTER[0]: (count, narrow),
            _ROUTER[1]: (count,),
            **(_packed(count, narrow, wide) if shape.packed else _plain(count, narrow, wide)),
            _BIASES[0]: (count, 2 * wide),
            _BIASES[1]: (count, narrow),
        }
        return {f"{self.prefix(layer)}.{row}": size for row, size in sizes.items()}


def _plain(count: int, narrow: int, wide: int) -> dict[str, Size]:
    return {_INNER: (count, narrow, 2 * wide), _OUTER: (count, wide, narrow)}


def _packed(count: int, narrow: int, wide: int) -> dict[str, Size]:
    inner, outer = (count, 2 * wide, narrow // BLOCK), (count, narrow, wide // BLOCK)
    halves = BLOCK // 2  # two numbers lie in a byte
    return dict(zip(_PACKED, ((*inner, halves), inner, (*outer, halves), outer), strict=True))


class _Keys(HeadKeys):
    count_key: ClassVar[str] = "num_local_experts"
    other_spellings: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}

    num_local_experts: int = Field(gt=0, le=10_000)
    quantization_config: Mapping[str, Any] | None = None
    # vLLM builds them whatever the config says.
    attention_bias: Literal[True] = True

    @property
    def packed(self) -> bool:
        return (self.quantization_config or {}).get("quant_method") == "mxfp4"

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.packed and (self.hidden_size % BLOCK or self.intermediate_size % BLOCK):
            raise ValueError(
                f"hidden_size {self.hidden_size} and intermediate_size {self.intermediate_size} "
                f"are no multiples of MXFP4's block of {BLOCK}"
            )
        return self


def _shape(config: Config) -> MoEShape:
    keys = read_keys(_Keys, config)
    shape = keys.moe_shape(keys.all_layers, keys.intermediate_size, renormalize=True)
    return replace(shape, packed=keys.packed)


def _other_names(config: Config) -> list[str]:
    keys = read_keys(_Keys, config)
    biases = tuple(f"{one.removesuffix('.weight')}.bias" for one in ATTENTION)
    parts = (*NORMS, *ATTENTION, *biases, "self_attn.sinks")
    return model_names(keys.num_hidden_layers, lambda layer: parts)


def _uniform_weight(config: Config, n: int) -> None:
    return None


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return stated(_Keys, config, "num_local_experts", keep)


GPT_OSS = block_family(
    _Names("mlp", OWN_NAMES, (*_ROUTER, _INNER, _OUTER, *_PACKED, *_BIASES)),
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    uniform_weight=_uniform_weight,
    cut_config=_cut_config,
    parts=BlockParts(gate_bias=_ROUTER[1]),
    stops_at_layouts=False,
    ties_head=False,
)
