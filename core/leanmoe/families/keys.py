"""Keys of ``config.json`` that families share, read strictly; a fault is named in one sentence."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from leanmoe.families.base import Config, MoEShape


class ModelKeys(BaseModel):
    """What every family's config states; ``count_key`` names the one that counts experts."""

    model_config = ConfigDict(strict=True, extra="ignore")
    count_key: ClassVar[str] = "num_experts"

    num_hidden_layers: int = Field(gt=0, le=10_000)
    num_experts_per_tok: int = Field(gt=0)
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    num_attention_heads: PositiveInt
    rms_norm_eps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    rope_theta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
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
    head_dim: PositiveInt | None = None

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
        return kind.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ValueError(f"it has no key {where!r}") from None
        found = f"{where} is {first['input']!r}: " if where else ""
        raise ValueError(found + first["msg"].removeprefix("Value error, ")) from None


def softmax_share(config: Config, n: int) -> float:
    """What a softmax router gives each of n experts of equal logits, renormalising or not."""
    return 1 / n
