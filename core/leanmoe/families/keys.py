"""Keys of ``config.json`` that families share, read strictly; a fault is named in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from leanmoe.families.base import Config, MoEShape
from leanmoe.files.records import first_fault

# Sizes past which no model is one, and numbers no longer fit a tensor's.
MOST = 1 << 24


class RopeKeys(BaseModel):
    """Rotary embedding as transformers 5 writes it, and as ``rope_scaling`` did before."""

    model_config = ConfigDict(strict=True, extra="ignore")

    rope_type: str | None = None
    rope_theta: float = Field(default=1e4, gt=0, le=1e30, allow_inf_nan=False)
    factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class ModelKeys(BaseModel):
    """What every family's config states; ``count_key`` names the one that counts experts.

    ``other_spellings`` are names under which transformers keeps a key too: this family's name of
    the key, by the other one.
    """

    model_config = ConfigDict(strict=True, extra="ignore")
    count_key: ClassVar[str] = "num_experts"
    other_spellings: ClassVar[Mapping[str, str]] = {}

    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_experts_per_tok: int = Field(gt=0)
    hidden_size: int = Field(gt=0, le=MOST)
    intermediate_size: int = Field(gt=0, le=MOST)
    vocab_size: int = Field(gt=0, le=MOST)
    num_attention_heads: int = Field(gt=0, le=MOST)
    rms_norm_eps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    rope_theta: float = Field(default=1e4, gt=0, le=1e30, allow_inf_nan=False)
    rope_parameters: RopeKeys | None = None
    rope_scaling: RopeKeys | None = None
    max_position_embeddings: PositiveInt | None = None
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False

    @property
    def n_experts(self) -> int:
        return int(getattr(self, self.count_key))

    @model_validator(mode="after")
    def _routes(self) -> Self:
        if self.num_experts_per_tok > self.n_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than the "
                f"{self.n_experts} of {self.count_key}"
            )
        return self

    def moe_shape(
        self, moe_layers: tuple[int, ...], expert_ffn_size: int, renormalize: bool
    ) -> MoEShape:
        """The shape of a model without expert groups; a model without MoE layers is refused."""
        if not moe_layers:
            raise ValueError("its keys leave no layer with experts")
        return MoEShape(
            n_layers=self.num_hidden_layers,
            moe_layers=moe_layers,
            n_routed_experts=self.n_experts,
            top_k=self.num_experts_per_tok,
            hidden_size=self.hidden_size,
            expert_ffn_size=expert_ffn_size,
            renormalize=renormalize,
        )

    @property
    def all_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))


class HeadKeys(ModelKeys):
    """A model with ordinary grouped-query attention."""

    num_key_value_heads: PositiveInt | None = None
    head_dim: int | None = Field(default=None, gt=0, le=MOST)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("head_dim is odd, and rotary embedding turns pairs")
        return self


Keys = TypeVar("Keys", bound=BaseModel)


def read_keys(kind: type[Keys], config: Config) -> Keys:
    """The keys of a config; ``ValueError`` names the first that is missing or wrong."""
    try:
        return kind.model_validate(_respelled(config, getattr(kind, "other_spellings", {})))
    except ValidationError as error:
        fault = first_fault(error)
        if fault.type == "missing":
            raise ValueError(f"it has no key {fault.place!r}") from None
        found = f"{fault.place} is {fault.value!r}: " if fault.place else ""
        object_wanted = fault.type == "model_type"  # whose message names a class of ours
        said = "Input should be an object" if object_wanted else fault.said
        raise ValueError(found + said) from None


def _respelled(config: Config, others: Mapping[str, str]) -> dict[str, Any]:
    """A config under this family's own names."""
    found = dict(config)
    for other, own in others.items():
        if other not in config:
            continue
        if found.setdefault(own, config[other]) != config[other]:
            raise ValueError(
                f"{own} is {found[own]!r} and {other}, which means the same, is {config[other]!r}"
            )
    return found


def stated(kind: type[ModelKeys], config: Config, key: str, value: int) -> dict[str, Any]:
    """A config in which every spelling of a key that it has says ``value``."""
    spellings = [other for other, own in kind.other_spellings.items() if own == key]
    named = [one for one in (key, *spellings) if one in config] or [key]
    return {**config, **dict.fromkeys(named, value)}


def longest_context(config: Config) -> int | None:
    """Tokens that a model's positions were made for; ``None`` where its config does not say."""
    stated: int | None = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if stated is None or not isinstance(rope, Mapping):
        return stated
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    known = type(original) is int and type(factor) in (int, float)
    # Where embeddings are stretched, some configs state the length before.
    return max(stated, int((original or 0) * (factor or 0))) if known else stated


def softmax_share(config: Config, n: int) -> float:
    """What a softmax router gives each of n experts of equal logits, renormalising or not."""
    return 1 / n
