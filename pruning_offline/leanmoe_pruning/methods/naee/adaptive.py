"""``--method naee --budget adaptive``: the best subset of every size, sizes chosen by their losses.

Which subset of a size is best is NAEE's own loss, batch by batch; how many experts a layer
keeps is decided on the relative change of its output, so that layers can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe_pruning.budgets.budget import Budget, allowed_counts, budget_of
from leanmoe_pruning.budgets.choosing import Chooser, choose_layers
from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs
from leanmoe_pruning.methods.naee.naee_options import (
    NaeeOptions,
    search_notes,
    search_of,
    search_settings,
)
from leanmoe_pruning.methods.naee.subsets import Search, chooser_of
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.selection import plans_of
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.layer_scores import LayerScores


@dataclass(frozen=True)
class AdaptiveNaee:
    """A checked run."""

    inputs: Inputs
    budget: Budget
    batch_size: int
    search: Search

    def settings(self) -> dict[str, Any]:
        fixed = {"variant": "layerwise", "batch_size": self.batch_size}
        return {**self.budget.settings(), **fixed, **search_settings(self.search)}

    def decide(self, dump: bool) -> Decision:
        batch_of_T = batch_of_tokens(self.inputs.layout, self.batch_size)
        shape, samples, unreached = self.inputs.shape, list[LayerSample](), Unreached()
        with progress("naee: best subsets of every size", len(shape.moe_layers)) as tick:

            def select(scores: LayerScores) -> Chooser:
                tick()
                samples.append(LayerSample.of(scores))
                unreached.add(scores)
                return chooser_of(scores, batch_of_T, self.search)

            choices, table = choose_layers(self.inputs.layers(), select, self.budget, shape)
        notes = (*search_notes(self.search, shape), *unreached.notes())
        if not dump:
            return Decision(plans_of(choices), notes=notes, samples=samples)
        run = f"layerwise_{self.budget.name}"
        evidence = evidence_of(self.inputs, run, choices, table)
        return Decision(plans_of(choices), *evidence, notes, samples=samples)


def open_adaptive(request: Request, options: NaeeOptions, inputs: Inputs) -> AdaptiveNaee:
    """Refuse what only the same number everywhere allows."""
    if request.variant == "progressive":
        raise InputError(
            "--variant progressive decides each layer on what the earlier ones left, so their "
            "losses cannot be weighed against each other; drop it or --budget adaptive"
        )
    budget = budget_of(request, inputs.checkpoint)
    inputs.need_scores("naee")
    search = search_of(options, inputs.shape, allowed_counts(inputs.shape))
    return AdaptiveNaee(inputs, budget, options.batch_size, search)
