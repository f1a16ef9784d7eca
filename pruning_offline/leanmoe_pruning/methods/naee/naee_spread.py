"""``--method naee --spread``: subsets of all layers chosen together, by NAEE's own losses.

Losses are shares of the layer's output: the sum over batches of the norm of the change over that
of the norm of the output, all batches for the layer and those of one source for a domain. Where
subsets are too many to try, experts stand for themselves: each counts what removing it from, or
adding it to, the subset that the search found would lose or save, and what a domain loses is
the share of its weighted output norm that goes. S subsets, B batches, D domains, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.budgets.domains import Domains
from leanmoe_pruning.budgets.gathering import Gathering
from leanmoe_pruning.budgets.offers import Offer, offer_of_experts, offer_of_sets
from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Chooser, Decision, Inputs
from leanmoe_pruning.methods.naee.greedy import Elimination, refined
from leanmoe_pruning.methods.naee.naee_effects import EffectsNaee, aim_of, has_effects
from leanmoe_pruning.methods.naee.naee_options import (
    NaeeOptions,
    search_notes,
    search_of,
    search_settings,
)
from leanmoe_pruning.methods.naee.removal import Removals
from leanmoe_pruning.methods.naee.subsets import Search, batch_losses, output_norms
from leanmoe_pruning.methods.request import Asked, Request
from leanmoe_pruning.methods.selection import complement, plans_of, pruned_subsets
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.layer_scores import LayerScores


@dataclass(frozen=True)
class SpreadNaee:
    """A checked run."""

    inputs: Inputs
    keep: int
    batch_size: int
    search: Search
    asked: Asked

    def settings(self) -> dict[str, Any]:
        fixed = {"keep": self.keep, "variant": "layerwise", "batch_size": self.batch_size}
        return {**fixed, **search_settings(self.search), "spread": self.asked}

    def decide(self, dump: bool) -> Decision:
        domains, samples = self.inputs.domains, list[LayerSample]()
        unreached = Unreached()
        gathering = Gathering(self.asked, domains)
        with progress("naee: losses of subsets", len(self.inputs.shape.moe_layers)) as tick:
            for scores in self.inputs.layers():
                samples.append(LayerSample.of(scores))
                unreached.add(scores)
                gathering.add(scores, self._offer(scores, domains))
                tick()
        choices, record = gathering.choose()
        notes = (*search_notes(self.search, self.inputs.shape), *unreached.notes())
        plans = plans_of(choices)
        if not dump:
            return Decision(plans, notes=notes, record=record, samples=samples)
        tensors, facts = evidence_of(self.inputs, f"layerwise_r{self.keep}_spread", choices)
        return Decision(plans, tensors, {**facts, **record}, notes, record, samples)

    def _offer(self, scores: LayerScores, domains: Domains) -> Offer:
        batch_of_T = batch_of_tokens(self.inputs.layout, self.batch_size)
        # Single experts are few sets, and without the only one there is no loss to compare with.
        if self.search.kind == "enumerate" or self.keep == 1:
            return offer_of_subsets(scores, self.keep, batch_of_T, domains)
        return offer_of_marginals(scores, self.keep, batch_of_T, domains, self.search)


def offer_of_subsets(
    scores: LayerScores, keep: int, batch_of_T: torch.Tensor, domains: Domains
) -> Offer:
    """Every subset with its relative loss, in all and by domain."""
    subsets = pruned_subsets(scores.n_experts, keep, scores.rule.n_groups)
    losses_SB = batch_losses(scores, subsets, batch_of_T)
    norms_B = output_norms(scores, batch_of_T)
    domain_of_B = torch.zeros(len(norms_B), dtype=torch.int64)
    # A sample need not reach the last batches.
    some = scores.gram_tokens
    domain_of_B[batch_of_T[some]] = domains.of_tokens()[some]
    norms_D = _by_domain(norms_B[None], domain_of_B, len(domains.names)).clamp_min(1e-300)
    losses_SD = _by_domain(losses_SB, domain_of_B, len(domains.names)) / norms_D
    losses_S = losses_SB.sum(1) / norms_B.sum().clamp_min(1e-300)
    kept = [complement(pruned, scores.n_experts) for pruned in subsets]
    return offer_of_sets(scores.layer, kept, losses_S, losses_SD, scores.n_experts)


def _by_domain(values_SB: torch.Tensor, domain_of_B: torch.Tensor, count: int) -> torch.Tensor:
    sums_SD = torch.zeros(len(values_SB), count, dtype=torch.float64)
    return sums_SD.index_add_(1, domain_of_B, values_SB)


def offer_of_marginals(
    scores: LayerScores, keep: int, batch_of_T: torch.Tensor, domains: Domains, search: Search
) -> Offer:
    """Single experts, worth what they change about the subset that the search found."""
    removals, n_groups = Removals(scores, batch_of_T), scores.rule.n_groups
    best = Elimination(removals, n_groups, search.width).best(keep)
    kept, loss = refined(removals, best, n_groups)
    worth_E = torch.zeros(scores.n_experts, dtype=torch.float64)
    worth_E[list(kept)] = removals.losses(kept, kept) - loss
    for expert in complement(kept, scores.n_experts):
        worth_E[expert] = loss - removals.loss(tuple(sorted((*kept, expert))))
    coverage_DE = domains.coverage(scores)
    offer = offer_of_experts(scores.layer, worth_E.clamp_min(0.0), coverage_DE, keep, n_groups)
    return replace(offer, own=kept)


def open_spread(request: Request, options: NaeeOptions, inputs: Inputs) -> Chooser:
    """Refuse what would not let layers be chosen together."""
    assert request.spread is not None, "otherwise it is not asked"
    if request.variant == "progressive":
        raise InputError(
            "--variant progressive decides each layer on what the earlier ones left, so layers "
            "cannot be chosen together; drop it or --spread"
        )
    keep = request.experts_to_keep(inputs.checkpoint)
    inputs.need_scores("naee")
    if request.spread == "effects" or (request.spread == "auto" and has_effects(inputs)):
        aim = aim_of(inputs)
        _check_own_search(options)
        return EffectsNaee(inputs, keep, request.spread, aim)
    inputs.check_spread(request.spread)
    search = search_of(options, inputs.shape, [keep])
    return SpreadNaee(inputs, keep, options.batch_size, search, request.spread)


def _check_own_search(options: NaeeOptions) -> None:
    if options != NaeeOptions():
        raise InputError(
            "--spread effects has a search of its own, over all layers and tokens at once; leave "
            "--search, --beam-width and --batch-size out, or give --spread experts or domains"
        )
