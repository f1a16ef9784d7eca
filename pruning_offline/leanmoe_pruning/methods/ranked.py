"""The methods that rank a layer's experts by one number and prune the lowest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.budgets.budget import Budget, budget_of
from leanmoe_pruning.budgets.choosing import Chooser, LossTable, choose_layers
from leanmoe_pruning.budgets.gathering import Gathering
from leanmoe_pruning.budgets.offers import offer_of_experts
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.observed import Observations
from leanmoe_pruning.methods.request import Asked, Request
from leanmoe_pruning.methods.saliency import GATES, SALIENCIES, highest
from leanmoe_pruning.methods.selection import LayerChoice, plans_of
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.options import option
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.layer_scores import LayerScores

Saliency = Callable[[LayerScores], torch.Tensor]


class _Ranking:
    """The layers as they are ranked, and what is worth telling of them."""

    def __init__(self, run: Ranked, dump: bool) -> None:
        self._run = run
        self.seen = Observations() if dump else None
        self.saliencies: list[torch.Tensor] = []
        self.samples: list[LayerSample] = []
        self.unreached = Unreached()

    def __call__(self, scores: LayerScores) -> Chooser:
        saliency_E = self._run.saliency(scores)
        self.saliencies.append(saliency_E)
        self.samples.append(LayerSample.of(scores))
        if self.seen is not None:
            self.seen.add(scores)
        self.unreached.add(scores)
        values, n_groups = saliency_E.tolist(), self._run.inputs.shape.n_groups
        return lambda keep: LayerChoice(scores.layer, highest(values, keep, n_groups))

    def notes(self) -> tuple[str, ...]:
        # The router says something of every expert.
        return () if self._run.name == "soft-activation" else self.unreached.notes()


@dataclass(frozen=True)
class Ranked:
    """A checked run of one of them; ``saliency`` gives each expert of a layer its number."""

    inputs: Inputs
    name: str
    saliency: Saliency
    budget: Budget
    # What the manifest records of how the saliency was taken.
    own: Mapping[str, Any]
    # Whether and how layers are chosen together.
    spread: Asked | None = None

    def settings(self) -> dict[str, Any]:
        spread = {} if self.spread is None else {"spread": self.spread}
        return {**self.budget.settings(), **self.own, **spread}

    def decide(self, dump: bool) -> Decision:
        ranking, shape = _Ranking(self, dump), self.inputs.shape
        with progress(f"{self.name}: ranking experts", shape.n_layers) as tick:
            choices, table, record = self._choose(ranking, self.inputs.layers(tick))
        plans, notes = plans_of(choices), ranking.notes()
        if ranking.seen is None:
            return Decision(plans, notes=notes, record=record, samples=ranking.samples)
        run = f"{self.name}_{self.budget.name}"
        keeps = [] if self.budget.keep is None else [self.budget.keep]
        tensors = ranking.seen.tensors(keeps, shape.n_groups)
        tensors[f"{run}.saliency"] = torch.stack(ranking.saliencies)
        more, facts = evidence_of(self.inputs, run, choices, table)
        facts = {**facts, **record}
        return Decision(plans, {**tensors, **more}, facts, notes, record, ranking.samples)

    def _choose(
        self, ranking: _Ranking, layers: Iterator[LayerScores]
    ) -> tuple[list[LayerChoice], LossTable | None, dict[str, Any]]:
        shape = self.inputs.shape
        if self.spread is None:
            return *choose_layers(layers, ranking, self.budget, shape), {}
        assert self.budget.keep is not None, "open refuses any other"
        domains = self.inputs.domains
        gathering = Gathering(self.spread, domains)
        for scores in layers:
            ranking(scores)
            saliency_E, coverage_DE = ranking.saliencies[-1], domains.coverage(scores)
            offer = offer_of_experts(
                scores.layer, saliency_E, coverage_DE, self.budget.keep, shape.n_groups
            )
            gathering.add(scores, offer)
        choices, record = gathering.choose()
        return choices, None, record


@dataclass(frozen=True)
class AnyGate:
    """Where no gate counts its reading changes nothing: one command line for all rankings."""

    gate: str = "model"


@dataclass(frozen=True)
class GateOptions:
    """How rankings in which the gate counts read it."""

    gate: str = option(
        "gate weights: the model's own (default), over their sum per token, or as the router "
        "scored them",
        default="model",
        choices=GATES,
    )


def _ranking(name: str, summary: str, options: type[AnyGate] | type[GateOptions]) -> Method[Any]:
    def open_(request: Request, own: AnyGate | GateOptions, inputs: Inputs) -> Ranked:
        budget = budget_of(request, inputs.checkpoint)
        inputs.need_scores(name)
        if request.spread is not None:
            inputs.check_spread(request.spread)
        settings = {"gate": own.gate} if options is GateOptions else {}
        taken = _coverage(inputs) if name == "coverage" else _by_name(name, own.gate)
        return Ranked(inputs, name, taken, budget, settings, request.spread)

    return Method(name, summary, open_, options, shares_budget=True, spreads=True, selects=True)


def _by_name(name: str, gate: str) -> Saliency:
    return lambda scores: SALIENCIES[name](scores, gate)


def _coverage(inputs: Inputs) -> Saliency:
    """The largest share of a domain's weighted output norms that the expert has, by expert.

    Coverage per corpus (arXiv 2607.01710), whose text was not at hand: this follows the
    description, that what a corpus needs stays covered whatever the others' weight.
    """
    return lambda scores: inputs.domains.coverage(scores).amax(0)


RANKINGS = (
    _ranking("frequency", "the experts most tokens were routed to", AnyGate),
    _ranking("soft-activation", "the experts the router finds likeliest", AnyGate),
    _ranking("ean", "the experts whose outputs are largest where they are used", AnyGate),
    _ranking("man", "the same as ean, by the name of its paper", AnyGate),
    _ranking("msan", "the experts whose mean squared output norm is largest", AnyGate),
    _ranking(
        "weighted-ean",
        "the experts whose weighted outputs sum to most",
        GateOptions,
    ),
    _ranking("coverage", "the experts that some calibration domain rests on most", AnyGate),
    _ranking("reap", "the experts whose mean weighted output is largest", GateOptions),
)
