"""The kinds of cut that methods make: which output each leaves, at which budgets.

Methods of one kind with one budget write files of one size; what they differ in is which
experts stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leanmoe.families import MoEShape
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.planning.work import (
    Wish,
    Work,
    condensing,
    evolution,
    masking,
    merged_scores,
    nothing,
    scores,
    subsets,
)

Cut = Literal["keep", "merge", "condense", "mask"]


@dataclass(frozen=True)
class Kind:
    """Methods that leave alike outputs for alike work."""

    name: str
    methods: tuple[str, ...]
    cut: Cut
    work: Work

    def plans(self, model: HeaderModel, budget: int) -> dict[int, LayerPlan]:
        """A cut of this kind's size: experts kept per layer, or condensed layers."""
        shape = model.checkpoint.shape
        if self.cut == "keep":
            return dict.fromkeys(shape.moe_layers, _keep(shape, budget))
        if self.cut == "merge":
            return dict.fromkeys(shape.moe_layers, _merge(shape, budget))
        if self.cut == "condense":
            condensed = LayerPlan(condense=dict.fromkeys(range(shape.top_k), 1.0))
            return dict.fromkeys(shape.moe_layers[len(shape.moe_layers) - budget :], condensed)
        return {}

    def budgets(self, model: HeaderModel) -> list[int]:
        """Every budget there is, the largest output first."""
        shape = model.checkpoint.shape
        if self.cut == "mask":
            return [0]
        if self.cut == "condense":
            return list(range(1, len(shape.moe_layers) + 1))
        return list(range(shape.n_routed_experts, shape.least_keep - 1, -shape.n_groups))

    def usual_budgets(self, model: HeaderModel) -> list[int]:
        """A few to look at: three quarters, half and a quarter of the experts or the layers."""
        known = self.budgets(model)
        if self.cut == "mask":
            return known
        whole = len(known) if self.cut == "condense" else known[0]
        return nearest(known, [whole * share for share in (0.75, 0.5, 0.25)])

    def applies(self, model: HeaderModel) -> bool:
        """Whether the family's router allows such a cut."""
        family, config = model.checkpoint.family, model.checkpoint.config
        if self.cut == "merge":
            return family.transfers
        if self.cut == "condense":
            return family.uniform_weight(config, model.checkpoint.shape.top_k) is not None
        return True

    def wish(self, model: HeaderModel, budget: int, tokens: int) -> Wish:
        if self.cut == "condense":
            return Wish(tokens, model.checkpoint.shape.n_routed_experts, budget)
        return Wish(tokens, budget)

    def words(self, budget: int) -> str:
        """The budget as a person reads it."""
        if self.cut == "mask":
            return "all experts"
        return f"{budget} layers" if self.cut == "condense" else f"keep {budget}"


def _keep(shape: MoEShape, count: int) -> LayerPlan:
    size, share = shape.n_routed_experts // shape.n_groups, count // shape.n_groups
    kept = (group * size + place for group in range(shape.n_groups) for place in range(share))
    return LayerPlan(keep=tuple(kept))


def _merge(shape: MoEShape, count: int) -> LayerPlan:
    rows = [
        [float(row == column) for column in range(shape.n_routed_experts)] for row in range(count)
    ]
    return LayerPlan(merge=Merge(router=rows, experts=rows))


def nearest(known: Sequence[int], wished: Sequence[float]) -> list[int]:
    """The known budget nearest to each wish, none twice, in the order of the wishes."""
    found = [min(known, key=lambda one: (abs(one - wish), one)) for wish in wished]
    return list(dict.fromkeys(found))


_ALL = (
    Kind("no data", ("random",), "keep", nothing),
    Kind(
        "scores",
        ("frequency", "soft-activation", "ean", "weighted-ean", "reap"),
        "keep",
        scores,
    ),
    Kind("subsets", ("naee",), "keep", subsets),
    Kind("merging", ("m-smoe",), "merge", merged_scores),
    Kind("evolution", ("eep",), "merge", evolution),
    Kind("condensing", ("cd-moe",), "condense", condensing),
    Kind("weights", ("moe-pruner", "wanda", "magnitude", "sparsegpt"), "mask", masking),
)


def known_kinds() -> tuple[Kind, ...]:
    """Kinds with the methods that are there."""
    return tuple(
        Kind(kind.name, methods, kind.cut, kind.work)
        for kind in _ALL
        if (methods := tuple(name for name in kind.methods if name in METHODS))
    )
