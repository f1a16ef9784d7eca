"""What a runtime must know to load a checkpoint whose MoE layers differ.

It stands under the key ``leanmoe`` of ``config.json``. A uniform cut has no such key and
loads in any engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from leanmoe.errors import CheckpointError
from leanmoe.files.records import One, first_fault, read_record

LAYOUT_KEY = "leanmoe"
# The smallest mapped probability whose logarithm a router sees; float32 holds smaller ones.
LEAST_PROBABILITY = 1e-30


def marker_name(block_prefix: str) -> str:
    """A tensor, float32 [2] of n_experts and top_k, beside the router of every layer of a layout.

    An engine that does not know layouts stops at it, where all shapes are what it expects.
    """
    return f"{block_prefix}.gate.layout"


def transfer_name(block_prefix: str) -> str:
    """The name of a layer's router transfer matrix, float32 ``[n_experts, gate_rows]``."""
    return f"{block_prefix}.gate.transfer"


class LayerLayout(BaseModel):
    """One MoE layer.

    ``condensed``: no routing, every token runs every expert, and what they weigh is folded
    into their weights (CD-MoE, arXiv 2412.00069); with no expert left, the shared expert alone.
    ``gate_rows``: the router still scores that
    many experts of the source, and a matrix ``[n_experts, gate_rows]`` beside its weight maps
    their probabilities to the experts that are left (EEP, arXiv 2407.00945). ``stand_ins``: of
    its ``n_experts``, which the router scores all, these were removed and have a constant and, at
    a ``rank`` above 0, a map of that rank in their place (``leanmoe.stand_ins``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_experts: NonNegativeInt
    top_k: NonNegativeInt
    condensed: bool = False
    gate_rows: PositiveInt | None = None
    stand_ins: tuple[NonNegativeInt, ...] | None = None
    rank: NonNegativeInt | None = None

    @property
    def n_computed(self) -> int:
        """Experts whose weights are there."""
        return self.n_experts - len(self.stand_ins or ())

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k is {self.top_k}, more than its {self.n_experts} experts")
        if self.condensed and (self.top_k != self.n_experts or self.gate_rows is not None):
            raise ValueError("a condensed layer runs all its experts and has no router to transfer")
        if not self.top_k and not self.condensed:
            raise ValueError("a layer that routes needs experts and a top_k of at least 1")
        if (self.stand_ins is None) != (self.rank is None):
            raise ValueError("stand_ins and their rank go together")
        if self.stand_ins is not None:
            self._check_stand_ins(self.stand_ins)
        return self

    def _check_stand_ins(self, ids: tuple[int, ...]) -> None:
        if self.condensed or self.gate_rows is not None:
            raise ValueError("only a layer that routes to its own experts has stand-ins")
        if not ids or list(ids) != sorted(set(ids)) or ids[-1] >= self.n_experts:
            raise ValueError(
                f"stand_ins are {list(ids)}, expected ascending numbers of its experts"
            )
        if len(ids) == self.n_experts:
            raise ValueError("every expert has a stand-in and none is left")


class Layout(BaseModel):
    """The layers that are not what the rest of ``config.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: One = 1
    layers: dict[int, LayerLayout] = Field(default_factory=dict)

    def to_config(self) -> dict[str, Any]:
        """The value of the key in ``config.json``."""
        return self.model_dump(mode="json", exclude_none=True)


NO_LAYOUT = Layout()


def read_layout(config: Mapping[str, Any], where: str) -> Layout:
    """The layout of a ``config.json``; ``CheckpointError`` names ``where`` it is wrong."""
    if config.get(LAYOUT_KEY) is None:
        return NO_LAYOUT
    try:
        return read_record(Layout, config[LAYOUT_KEY])
    except ValidationError as error:
        fault = first_fault(error)
        place = f"{LAYOUT_KEY}.{fault.place}".removesuffix(".")
        raise CheckpointError(f"{where}: {place}: {fault.said}; cut the model again") from None
