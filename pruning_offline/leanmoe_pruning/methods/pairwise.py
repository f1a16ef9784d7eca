"""``--method pairwise``: what experts do together, not only each alone.

HOPE (arXiv 2609.18916) is described as adding terms of pairs to an expert's own; its text was not
at hand, so this follows that description and not the paper's formula or code. What is computed:
were a set R of experts simply left out, with no token routed anew, a token's output would change
by the sum of g_e f_e over the experts of R that it uses. The squared norm of that, summed over
tokens, is a sum over pairs of R,

    sum over e, f in R of Q_ef,   Q_ef = sum over tokens of g_e g_f (f_e . f_f).

Its diagonal is what expert by expert criteria see. The set of least sum goes: found exactly where
subsets are few, else experts leave one by one and swaps follow. Tokens with a Gram matrix
are summed over. E experts, T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb
from typing import Any

import torch

from leanmoe_pruning.budgets.budget import Budget, budget_of
from leanmoe_pruning.budgets.choosing import Chooser, choose_layers
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.selection import LayerChoice, complement, plans_of, pruned_subsets
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.options import NoOptions
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.gram import packed_place
from leanmoe_pruning.scores.layer_scores import LayerScores

# Subsets of one layer that are all tried.
_TRIED = 20_000
# A swap lowers the sum by this share at least: less is noise of the arithmetic.
_LEAST_GAIN = 1e-9


def pair_terms(scores: LayerScores) -> torch.Tensor:
    """Q, float64 ``[E, E]``, over the tokens that have a Gram matrix."""
    some, n = scores.gram_tokens, scores.n_experts
    routing = scores.routing()
    ids_TK, weights_TK = routing.ids_TK[some], routing.applied()[some].double()
    terms_EE = torch.zeros(n, n, dtype=torch.float64)
    for i, j in combinations_with_replacement(range(ids_TK.shape[1]), 2):
        one_T, two_T = ids_TK[:, i], ids_TK[:, j]
        inner_T = _inner(scores.output_gram_TP, one_T, two_T, n)
        product_T = weights_TK[:, i] * weights_TK[:, j] * inner_T
        terms_EE.view(-1).index_add_(0, one_T * n + two_T, product_T)
        if i != j:
            terms_EE.view(-1).index_add_(0, two_T * n + one_T, product_T)
    return terms_EE


def _inner(gram_TP: torch.Tensor, one_T: torch.Tensor, two_T: torch.Tensor, n: int) -> torch.Tensor:
    """f_one . f_two of each token out of products of g = f - z: the last is z itself."""
    last_T = torch.full_like(one_T, n)
    pairs = ((one_T, two_T), (one_T, last_T), (two_T, last_T), (last_T, last_T))
    parts = [gram_TP.gather(1, packed_place(a, b, n + 1)[:, None])[:, 0] for a, b in pairs]
    return torch.stack(parts).sum(0)


def least_together(terms_EE: torch.Tensor, keep: int, n_groups: int = 1) -> tuple[int, ...]:
    """The ``keep`` experts without which the sum over pairs is least, as many of each group."""
    n = len(terms_EE)
    if comb(n // n_groups, keep // n_groups) ** n_groups <= _TRIED:
        subsets = pruned_subsets(n, keep, n_groups)
        absent_SE = torch.zeros(len(subsets), n, dtype=torch.float64)
        for row, experts in enumerate(subsets):
            absent_SE[row, list(experts)] = 1.0
        sums = ((absent_SE @ terms_EE) * absent_SE).sum(1).tolist()
        return complement(subsets[min(range(len(sums)), key=sums.__getitem__)], n)
    return complement(_swapped(terms_EE, _eliminated(terms_EE, keep, n_groups), n_groups), n)


def _eliminated(terms_EE: torch.Tensor, keep: int, n_groups: int) -> list[int]:
    """Experts that leave one by one, each the one whose leaving adds least."""
    n, size = len(terms_EE), len(terms_EE) // n_groups
    gone: list[int] = []
    added_E = terms_EE.diagonal().clone()
    for round_ in range(n - keep):
        group = round_ % n_groups
        own = slice(group * size, (group + 1) * size)
        expert = group * size + int(added_E[own].argmin())
        gone.append(expert)
        added_E += 2 * terms_EE[expert]
        added_E[expert] = float("inf")
    return gone


def _swapped(terms_EE: torch.Tensor, gone: Sequence[int], n_groups: int) -> list[int]:
    """The set after every change of places that lowers the sum, the best one first."""
    n, size = len(terms_EE), len(terms_EE) // n_groups
    absent_E = torch.zeros(n, dtype=torch.float64)
    absent_E[list(gone)] = 1.0
    group_E = torch.arange(n) // size
    same_EE = group_E[:, None] == group_E
    least = _LEAST_GAIN * float(terms_EE.diagonal().sum())
    while True:
        share_E, own_E = terms_EE @ absent_E, terms_EE.diagonal()
        # Row: an expert that comes back; column: one that goes in its place.
        gain_EE = (2 * share_E - own_E)[:, None] - (2 * share_E + own_E)[None] + 2 * terms_EE
        allowed_EE = same_EE & (absent_E > 0)[:, None] & (absent_E == 0)[None]
        gain_EE = gain_EE.masked_fill(~allowed_EE, float("-inf"))
        best = int(gain_EE.argmax())
        if not float(gain_EE.view(-1)[best]) > least:
            return absent_E.nonzero().flatten().tolist()
        absent_E[best // n], absent_E[best % n] = 0.0, 1.0


@dataclass(frozen=True)
class Pairwise:
    """A checked run."""

    inputs: Inputs
    budget: Budget

    def settings(self) -> dict[str, Any]:
        return self.budget.settings()

    def decide(self, dump: bool) -> Decision:
        samples, unreached, shape = list[LayerSample](), Unreached(), self.inputs.shape

        def select(scores: LayerScores) -> Chooser:
            samples.append(LayerSample.of(scores))
            unreached.add(scores)
            terms_EE = pair_terms(scores)
            return lambda keep: LayerChoice(
                scores.layer, least_together(terms_EE, keep, shape.n_groups)
            )

        with progress("pairwise: joint parts of experts", shape.n_layers) as tick:
            choices, table = choose_layers(self.inputs.layers(tick), select, self.budget, shape)
        notes = unreached.notes()
        if not dump:
            return Decision(plans_of(choices), notes=notes, samples=samples)
        evidence = evidence_of(self.inputs, f"pairwise_{self.budget.name}", choices, table)
        return Decision(plans_of(choices), *evidence, notes, samples=samples)


def _open(request: Request, options: NoOptions, inputs: Inputs) -> Pairwise:
    budget = budget_of(request, inputs.checkpoint)
    inputs.need_scores("pairwise")
    return Pairwise(inputs, budget)


METHOD = Method(
    "pairwise",
    "the set of experts whose joint part in the outputs is least, pairs counted",
    _open,
    NoOptions,
    shares_budget=True,
    selects=True,
)
