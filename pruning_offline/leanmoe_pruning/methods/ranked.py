"""The methods that rank a layer's experts by one number and drop the lowest."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.budgets.budget import Budget
from leanmoe_pruning.budgets.choosing import Chooser, choose_layers
from leanmoe_pruning.budgets.options import budget_of
from leanmoe_pruning.methods.evidence import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.observed import Observations
from leanmoe_pruning.methods.saliency import GATES, SALIENCIES, highest
from leanmoe_pruning.methods.selection import LayerChoice, plans_of
from leanmoe_pruning.scores.layer_scores import LayerScores

# The rankings in which the reading of the gate counts.
GATED = ("weighted-ean", "reap")


class _Ranking:
    """The layers as they are ranked, and what is worth telling of them."""

    def __init__(self, run: Ranked, dump: bool) -> None:
        self._run = run
        self.seen = Observations() if dump else None
        self.saliencies: list[torch.Tensor] = []
        self.unreached: dict[int, list[int]] = {}

    def __call__(self, scores: LayerScores) -> Chooser:
        saliency_E = SALIENCIES[self._run.metric](scores, self._run.gate)
        self.saliencies.append(saliency_E)
        if self.seen is not None:
            self.seen.add(scores)
        idle = (scores.token_counts() == 0).nonzero().flatten().tolist()
        if idle:
            self.unreached[scores.layer] = idle
        values, n_groups = saliency_E.tolist(), self._run.inputs.shape.n_groups
        return lambda keep: LayerChoice(scores.layer, highest(values, keep, n_groups))

    def notes(self) -> tuple[str, ...]:
        if not self.unreached or self._run.metric == "soft-activation":
            return ()
        count = sum(map(len, self.unreached.values()))
        layer, idle = next(iter(self.unreached.items()))
        return (
            f"no token reached {count} experts (layer {layer}: {', '.join(map(str, idle))}), so "
            "they count for nothing and go first; more or other --data would judge them",
        )


@dataclass(frozen=True)
class Ranked:
    """A checked run of one of them."""

    inputs: Inputs
    metric: str
    gate: str
    budget: Budget

    def settings(self) -> dict[str, Any]:
        gate = {"gate": self.gate} if self.metric in GATED else {}
        return {**self.budget.settings(), **gate}

    def decide(self, dump: bool) -> Decision:
        ranking, shape = _Ranking(self, dump), self.inputs.shape
        choices, table = choose_layers(self.inputs.layers(), ranking, self.budget, shape)
        plans, notes = plans_of(choices), ranking.notes()
        if ranking.seen is None:
            return Decision(plans, notes=notes)
        run = f"{self.metric}_{self.budget.name}"
        keeps = [] if self.budget.keep is None else [self.budget.keep]
        tensors = ranking.seen.tensors(keeps, shape.n_groups)
        tensors[f"{run}.saliency"] = torch.stack(ranking.saliencies)
        more, facts = evidence_of(self.inputs, run, choices, table)
        return Decision(plans, {**tensors, **more}, facts, notes)


def _open(args: argparse.Namespace, inputs: Inputs) -> Ranked:
    budget = budget_of(args, inputs)
    inputs.need_scores(args.method)
    return Ranked(inputs, args.method, args.gate, budget)


def _add_gate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gate",
        choices=GATES,
        default="model",
        help="gate weights: the model's own (default), over their sum per token, or as the router "
        "scored them",
    )


def _ranking(name: str, summary: str) -> Method:
    add_arguments = _add_gate if name in GATED else None
    # One command line for all rankings: where no gate counts, its reading changes nothing.
    return Method(name, summary, _open, add_arguments, also_takes=("gate",), shares_budget=True)


RANKINGS = (
    _ranking("frequency", "the experts most tokens were routed to"),
    _ranking("soft-activation", "the experts the router finds likeliest"),
    _ranking("ean", "the experts whose outputs are largest where they are used"),
    _ranking("weighted-ean", "the experts whose weighted outputs sum to most"),
    _ranking("reap", "the experts whose mean weighted output is largest"),
)
