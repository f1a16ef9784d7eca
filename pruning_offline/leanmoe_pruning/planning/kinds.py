"""The kinds of cut that methods make: which output each leaves, at which budgets.

Methods of one kind with one budget write files of one size; what they differ in is which
experts stay. A class per kind of cut; what to lay out and how to name it are its answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from leanmoe.families import MoEShape
from leanmoe.input_orders import order_name
from leanmoe.sparse.sparse_format import GROUP
from leanmoe_pruning.checkpoints.fp8 import FP8
from leanmoe_pruning.cutting.carried_orders import is_summable
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.cutting.packing import Order, Packer, is_packable, is_separable, packer_of
from leanmoe_pruning.planning.costs import (
    CostOf,
    Workload,
    condensing,
    evolution,
    masking,
    merged_scores,
    nothing,
    scores,
    subsets,
)
from leanmoe_pruning.planning.headers import HeaderModel

Plans = dict[int, LayerPlan]


@dataclass(frozen=True)
class Kind(ABC):
    """Methods that leave alike outputs for alike work."""

    name: str
    methods: tuple[str, ...]
    cost_of: CostOf
    # Whether a budget is a number of experts per layer, which ``--keep`` gives.
    counts_experts: ClassVar[bool] = False

    @abstractmethod
    def plans(self, model: HeaderModel, budget: int) -> Plans:
        """A cut of this kind's size: experts kept per layer, or condensed layers."""

    def methods_of(self, model: HeaderModel) -> tuple[str, ...]:
        """Those of the methods that take the model."""
        return self.methods

    def packer(self, model: HeaderModel, budget: int) -> Packer | None:
        """What packs the experts of such a cut, or ``None``."""
        return None

    def input_orders(self, model: HeaderModel) -> dict[str, Order] | None:
        """Orders of input columns that such a cut brings, ``None`` where the source's stay."""
        return None

    @abstractmethod
    def budgets(self, model: HeaderModel) -> list[int]:
        """Every budget there is, the largest output first."""

    def usual_budgets(self, model: HeaderModel) -> list[int]:
        """A few to look at: three quarters, half and a quarter of the experts or the layers."""
        known = self.budgets(model)
        return nearest(known, [max(known) * share for share in (0.75, 0.5, 0.25)])

    def applies(self, model: HeaderModel) -> bool:
        """Whether the family's router and what was done to the model before allow such a cut."""
        return True

    @abstractmethod
    def workload(self, model: HeaderModel, budget: int, tokens: int) -> Workload:
        """What there is to decide."""

    @abstractmethod
    def words(self, budget: int) -> str:
        """The budget as a person reads it."""

    @abstractmethod
    def facts(self, budget: int) -> dict[str, int | str]:
        """The budget as ``--json`` prints it."""


class Keeping(Kind):
    """Some experts of every layer stay as they are."""

    counts_experts = True

    def plans(self, model: HeaderModel, budget: int) -> Plans:
        shape = model.checkpoint.shape
        return dict.fromkeys(shape.moe_layers, self._layer(shape, budget))

    def _layer(self, shape: MoEShape, budget: int) -> LayerPlan:
        size, share = shape.n_routed_experts // shape.n_groups, budget // shape.n_groups
        kept = (group * size + place for group in range(shape.n_groups) for place in range(share))
        return LayerPlan(keep=tuple(kept))

    def budgets(self, model: HeaderModel) -> list[int]:
        shape = model.checkpoint.shape
        return list(range(shape.n_routed_experts, shape.least_keep - 1, -shape.n_groups))

    def workload(self, model: HeaderModel, budget: int, tokens: int) -> Workload:
        return Workload(tokens, budget)

    def words(self, budget: int) -> str:
        return f"keep {budget}"

    def facts(self, budget: int) -> dict[str, int | str]:
        return {"keep": budget}


class KeepingPacked(Keeping):
    """The same of a packed model, written with ``--compress``: packed as it is."""

    def packer(self, model: HeaderModel, budget: int) -> Packer | None:
        return packer_of(model.checkpoint, None)

    def applies(self, model: HeaderModel) -> bool:
        """Lists of weights beyond a format are made anew, from weights and not from headers."""
        how = model.checkpoint.packing
        return how is not None and how.layout != "overflow"

    def words(self, budget: int) -> str:
        return f"keep {budget} packed"

    def facts(self, budget: int) -> dict[str, int | str]:
        return {"keep": budget, "packed": True}


class Merging(Keeping):
    """Every layer's experts are summed into fewer, their probabilities as well."""

    def _layer(self, shape: MoEShape, budget: int) -> LayerPlan:
        rows = [
            [float(row == column) for column in range(shape.n_routed_experts)]
            for row in range(budget)
        ]
        return LayerPlan(merge=Merge(router=rows, experts=rows))

    def applies(self, model: HeaderModel) -> bool:
        checkpoint = model.checkpoint
        is_plain = is_summable(checkpoint) and FP8 not in model.expert_types
        return checkpoint.family.transfers and is_plain


class Condensing(Kind):
    """Some layers lose their router; a budget is their number."""

    def plans(self, model: HeaderModel, budget: int) -> Plans:
        shape = model.checkpoint.shape
        condensed = LayerPlan(condense=dict.fromkeys(range(shape.top_k), 1.0))
        return dict.fromkeys(shape.moe_layers[len(shape.moe_layers) - budget :], condensed)

    def budgets(self, model: HeaderModel) -> list[int]:
        return list(range(1, len(model.checkpoint.shape.moe_layers) + 1))

    def applies(self, model: HeaderModel) -> bool:
        checkpoint = model.checkpoint
        weight = checkpoint.family.uniform_weight(checkpoint.config, checkpoint.shape.top_k)
        return weight is not None

    def workload(self, model: HeaderModel, budget: int, tokens: int) -> Workload:
        return Workload(tokens, model.checkpoint.shape.n_routed_experts, budget)

    def words(self, budget: int) -> str:
        return f"{budget} layers"

    def facts(self, budget: int) -> dict[str, int | str]:
        return {"condensed_layers": budget}


class Masking(Kind):
    """Single weights become zero and all experts stay: there is one budget, called 0."""

    def methods_of(self, model: HeaderModel) -> tuple[str, ...]:
        """Which gives weights new values is not for float8."""
        rounded = _NEW_VALUES if FP8 in model.expert_types else ()
        return tuple(name for name in self.methods if name not in rounded)

    def plans(self, model: HeaderModel, budget: int) -> Plans:
        return {}

    def budgets(self, model: HeaderModel) -> list[int]:
        return [0]

    def workload(self, model: HeaderModel, budget: int, tokens: int) -> Workload:
        return Workload(tokens, budget)

    def words(self, budget: int) -> str:
        return "all experts"

    def facts(self, budget: int) -> dict[str, int | str]:
        return {}


class Packing(Masking):
    """The same, stored without the zeros: a budget is how many of every 32 weights are left."""

    def packer(self, model: HeaderModel, budget: int) -> Packer | None:
        return packer_of(model.checkpoint, self.words(budget))

    def input_orders(self, model: HeaderModel) -> dict[str, Order]:
        """One of every expert: groups of 32 are permuted unless asked otherwise."""
        if model.checkpoint.family.stacked:
            return {}
        family, shape = model.checkpoint.family, model.checkpoint.shape
        order = np.arange(shape.hidden_size, dtype=np.int32)
        return {
            order_name(family, layer, expert): order
            for layer, own in model.checkpoint.layers.items()
            for expert in range(own.n_experts)
        }

    def budgets(self, model: HeaderModel) -> list[int]:
        return [24, 16, 8]

    def usual_budgets(self, model: HeaderModel) -> list[int]:
        return self.budgets(model)

    def applies(self, model: HeaderModel) -> bool:
        shape = model.checkpoint.shape
        whole = shape.hidden_size % GROUP == 0 and shape.expert_ffn_size % GROUP == 0
        dense = is_separable(model.checkpoint) and model.checkpoint.packing is None
        return whole and dense and is_packable(model.expert_types)

    def words(self, budget: int) -> str:
        return f"{budget}:{GROUP}"

    def facts(self, budget: int) -> dict[str, int | str]:
        return {"pattern": self.words(budget)}


def nearest(known: Sequence[int], targets: Sequence[float]) -> list[int]:
    """The known budget nearest to each target, none twice, in the order of the targets."""
    found = [min(known, key=lambda one: (abs(one - target), one)) for target in targets]
    return list(dict.fromkeys(found))


_NEW_VALUES = ("sparsegpt",)
_WEIGHTS = ("moe-pruner", "wanda", "magnitude", "sparsegpt")
_RANKED = (
    "frequency",
    "soft-activation",
    "ean",
    "man",
    "msan",
    "weighted-ean",
    "reap",
    "coverage",
    "pairwise",
)
_ALL: tuple[Kind, ...] = (
    Keeping("no data", ("random",), nothing),
    Keeping("scores", _RANKED, scores),
    Keeping("subsets", ("naee",), subsets),
    KeepingPacked("no data, packed", ("random",), nothing),
    KeepingPacked("scores, packed", _RANKED, scores),
    KeepingPacked("subsets, packed", ("naee",), subsets),
    Merging("merging", ("m-smoe",), merged_scores),
    Merging("evolution", ("eep",), evolution),
    Condensing("condensing", ("cd-moe",), condensing),
    Masking("weights", _WEIGHTS, masking),
    Packing("packed weights", _WEIGHTS, masking),
)


# Every method that makes a cut of its own.
METHOD_NAMES = tuple(dict.fromkeys(name for kind in _ALL for name in kind.methods))


def known_kinds() -> tuple[Kind, ...]:
    """Every kind; the tests hold their methods to those that are there."""
    return _ALL
