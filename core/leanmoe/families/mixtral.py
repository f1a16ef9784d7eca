"""Mixtral: every layer is MoE, softmax over all experts, top-k renormalised."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from leanmoe.families.base import Config, ExpertTensor, Family, MoEShape, Projection

_FILE_NAMES: dict[Projection, str] = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_PROJECTIONS = {file_name: projection for projection, file_name in _FILE_NAMES.items()}
_EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w1|w2|w3)\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_LAYER_PARTS = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{one}_proj" for one in "qkvo"),
)
_GATE = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.gate\.weight")


class _Keys(BaseModel):
    """The keys of ``config.json`` that decide what a Mixtral computes."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_local_experts: int = Field(gt=0, le=10_000)
    num_experts_per_tok: int = Field(gt=0)
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None
    rms_norm_eps: float = Field(gt=0, allow_inf_nan=False)
    rope_theta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    sliding_window: PositiveInt | None = None
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than the "
                f"{self.num_local_experts} of num_local_experts"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("head_dim is odd, and rotary embedding turns pairs")
        return self


def _keys(config: Config) -> _Keys:
    try:
        return _Keys.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ValueError(f"it has no key {where!r}") from None
        found = f"{where} is {first['input']!r}: " if where else ""
        raise ValueError(found + first["msg"].removeprefix("Value error, ")) from None


def _shape(config: Config) -> MoEShape:
    keys = _keys(config)
    return MoEShape(
        n_layers=keys.num_hidden_layers,
        moe_layers=tuple(range(keys.num_hidden_layers)),
        n_routed_experts=keys.num_local_experts,
        top_k=keys.num_experts_per_tok,
        hidden_size=keys.hidden_size,
        expert_ffn_size=keys.intermediate_size,
        renormalize=True,
    )


def _other_names(config: Config) -> list[str]:
    keys = _keys(config)
    head = [] if keys.tie_word_embeddings else ["lm_head.weight"]
    per_layer = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(keys.num_hidden_layers)
        for part in _LAYER_PARTS
    ]
    return ["model.embed_tokens.weight", "model.norm.weight", *head, *per_layer]


def _layer_of(name: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def _block_prefix(layer: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe"


def _gate_name(layer: int) -> str:
    return f"{_block_prefix(layer)}.gate.weight"


def _expert_name(layer: int, expert: int, projection: Projection) -> str:
    return f"{_block_prefix(layer)}.experts.{expert}.{_FILE_NAMES[projection]}.weight"


def _parse_expert(name: str) -> ExpertTensor | None:
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    layer, expert, file_name = match.groups()
    return ExpertTensor(int(layer), int(expert), _PROJECTIONS[file_name])


def _gate_layer(name: str) -> int | None:
    match = _GATE.fullmatch(name)
    return int(match[1]) if match else None


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return {**config, "num_local_experts": keep}


MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    shape=_shape,
    other_names=_other_names,
    layer_of=_layer_of,
    block_prefix=_block_prefix,
    gate_name=_gate_name,
    expert_name=_expert_name,
    parse_expert=_parse_expert,
    gate_layer=_gate_layer,
    cut_config=_cut_config,
)
