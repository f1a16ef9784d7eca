"""``--method m-smoe``: merge experts by usage around the most used ones (arXiv 2310.01334).

The released code leaves the router as it is: all E experts are scored, and every member of a
group runs the group's merged expert. What is said here is nearly that: the router's
probabilities over all E are summed by group, and the top-k groups run. The two differ only
where two of a token's top-k share a group: then the published model runs one expert with
both weights, this one a further group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanmoe.errors import CheckpointError, InputError
from leanmoe_pruning.budgets.budget import Budget, budget_of
from leanmoe_pruning.cutting.carried_orders import check_summable
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.cutting.packing import check_sums
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.methods.merging.alignment import align_
from leanmoe_pruning.methods.merging.grouping import Grouping, Usage, group, share_out
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.methods.weights.layer_weights import read_layer
from leanmoe_pruning.options import option
from leanmoe_pruning.progress import progress

ROUTERS = ("group", "dominant")


@dataclass(frozen=True)
class Merging:
    """A checked run."""

    inputs: Inputs
    budget: Budget
    router: str
    align: bool
    out: Path

    def settings(self) -> dict[str, Any]:
        return {**self.budget.settings(), "merge_router": self.router, "align": self.align}

    def decide(self, dump: bool) -> Decision:
        unreached, usages = Unreached(), []
        with progress("m-smoe: usage of experts", self.inputs.shape.n_layers) as tick:
            for scores in self.inputs.layers(tick):
                unreached.add(scores)
                usages.append(Usage.of(scores))
        counts = self._counts(usages)
        groupings = [group(usage, count) for usage, count in zip(usages, counts, strict=True)]
        pairs = list(zip(groupings, usages, strict=True))
        plans = {found.layer: self._plan(found, usage) for found, usage in pairs}
        record = {"groups": {str(one.layer): list(map(list, one.members)) for one in groupings}}
        tensors = self._tensors(pairs) if dump else {}
        spool = self._aligned(groupings) if self.align else None
        facts = {f"m-smoe_{self.budget.name}": record} if dump else {}
        notes = unreached.notes("leave nothing in the experts they are merged into")
        return Decision(plans, tensors, facts, notes, record, replaced=spool)

    def _counts(self, usages: Sequence[Usage]) -> list[int]:
        if self.budget.keep is not None:
            return [self.budget.keep] * len(usages)
        return share_out(usages, self.budget.total, self.inputs.shape)

    def _plan(self, found: Grouping, usage: Usage) -> LayerPlan:
        n_experts = len(usage.counts)
        rows = found.indicators if self.router == "group" else found.dominants
        return LayerPlan(merge=Merge(router=rows(n_experts), experts=found.weights(usage.counts)))

    def _tensors(self, pairs: Sequence[tuple[Grouping, Usage]]) -> dict[str, torch.Tensor]:
        """``group`` [L, E]: each expert's dominant one; ``usage`` [L, E]; ``similarity``."""
        chiefs = []
        for found, usage in pairs:
            chief_of = {
                expert: chief
                for chief, group in zip(found.dominant, found.members, strict=True)
                for expert in group
            }
            chiefs.append([chief_of[expert] for expert in range(len(usage.counts))])
        run = f"m-smoe_{self.budget.name}"
        return {
            f"{run}.group": torch.tensor(chiefs),
            f"{run}.usage": torch.tensor([usage.counts for _, usage in pairs]),
            f"{run}.similarity": torch.stack([usage.similarity_EE for _, usage in pairs]),
        }

    def _aligned(self, groupings: Sequence[Grouping]) -> WeightSpool:
        """Experts that compute what the source's do, their neurons in the order of their groups."""
        spool, source = WeightSpool.beside(self.out), self.inputs.checkpoint
        try:
            with progress("m-smoe: matching neurons", len(groupings)) as tick:
                for found in groupings:
                    weights = read_layer(source.reader, source, found.layer)
                    align_(weights, found)
                    spool.put(found.layer, weights.tensors)
                    tick()
        except BaseException:
            spool.remove()
            raise
        return spool


@dataclass(frozen=True)
class MergingOptions:
    """The options of ``--method m-smoe``."""

    merge_router: str = option(
        "a merged expert is as probable as its group together (default), or as the group's "
        "most used expert",
        default="group",
        choices=ROUTERS,
    )
    align: bool = option(
        "match the hidden neurons of merged experts first (time grows with width cubed)",
        default=False,
    )


def _open(request: Request, options: MergingOptions, inputs: Inputs) -> Merging:
    family = inputs.checkpoint.family
    if not family.transfers:
        raise CheckpointError(
            f"{inputs.checkpoint.path} cannot be merged: the router of {family.name} is no plain "
            "softmax, whose probabilities could be summed by group; use --method reap"
        )
    if options.align and request.plan_only:
        raise InputError("--align reorders single weights, which no plan can say; drop one")
    if not options.align:
        check_summable(inputs.checkpoint)
    check_sums(inputs.checkpoint, request.compress)
    budget = budget_of(request, inputs.checkpoint, merged=True)
    inputs.need_scores("m-smoe")
    return Merging(inputs, budget, options.merge_router, options.align, request.out)


METHOD = Method(
    name="m-smoe",
    summary="experts merged into the most used, by router logits and usage",
    open=_open,
    options=MergingOptions,
    shares_budget=True,
)
