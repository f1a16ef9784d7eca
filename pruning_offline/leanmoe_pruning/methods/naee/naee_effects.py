"""``--method naee --spread effects``: subsets of all layers, chosen by what they do together.

Where NAEE compares each layer's output, this compares the model's next-token distributions, or the
log loss of the text, by the effects of a bundle (``scores.effects``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.evaluation.importance import super_experts
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs
from leanmoe_pruning.methods.naee.together import (
    MOST_TOKENS,
    MOST_TURNS,
    Kept,
    LayerEffects,
    changes,
    choose_together,
    divergence,
    log_loss,
)
from leanmoe_pruning.methods.request import Asked
from leanmoe_pruning.methods.selection import LayerChoice, plans_of
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.sampling import evenly_spaced


@dataclass(frozen=True)
class Aim:
    """What the sum over layers should make least: named as in the manifest."""

    name: str
    expected: Callable[[torch.Tensor], float]
    pull: float = 0.0


_PREDICTIONS = Aim("divergence", divergence)
_TEXT = Aim("log_loss", log_loss, pull=1.0)


@dataclass(frozen=True)
class EffectsNaee:
    """A checked run."""

    inputs: Inputs
    keep: int
    asked: Asked
    aim: Aim

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep, "variant": "layerwise", "spread": self.asked}

    def decide(self, dump: bool) -> Decision:
        passed = self._pass()
        passed.pin_super_experts()
        turns = self._turns(passed.layers)
        alone_S, found_S = (changes(passed.layers, kept) for kept in (turns[0], turns[-1]))
        facts = {"turns": len(turns) - 1, **self._facts(alone_S, found_S)}
        record = {"spread": {"asked": self.asked, "rule": "effects", **facts}}
        layers = [one.layer for one in passed.layers]
        choices = [LayerChoice(i, own) for i, own in zip(layers, turns[-1], strict=True)]
        decision = Decision(
            plans_of(choices),
            notes=passed.unreached.notes(),
            record=record,
            samples=passed.samples,
            divergence=divergence(found_S),
        )
        return self._with_evidence(decision, choices) if dump else decision

    def _with_evidence(self, decision: Decision, choices: Sequence[LayerChoice]) -> Decision:
        tensors, facts = evidence_of(self.inputs, f"layerwise_r{self.keep}_spread", choices)
        return replace(decision, tensors=tensors, facts={**facts, **decision.record})

    def _pass(self) -> _Passed:
        passed, tokens = _Passed(), self._tokens
        with progress("naee: reading effects", len(self.inputs.shape.moe_layers)) as tick:
            for scores in self.inputs.layers():
                passed.samples.append(LayerSample.of(scores))
                passed.unreached.add(scores)
                passed.layers.append(LayerEffects(scores, tokens))
                tick()
        return passed

    @property
    def _tokens(self) -> int:
        assert self.inputs.bundle is not None, "open refuses to go without"
        return min(MOST_TOKENS, self.inputs.bundle.description.gram_tokens)

    def _turns(self, layers: Sequence[LayerEffects]) -> list[list[Kept]]:
        """What the layers chose alone, then after every turn."""
        turns = []
        with progress("naee: layers take turns", 1 + MOST_TURNS) as tick:
            for kept in choose_together(layers, self.keep, self.aim.pull):
                turns.append(kept)
                tick()
        return turns

    def _facts(self, alone_S: torch.Tensor, found_S: torch.Tensor) -> dict[str, Any]:
        """For the manifest: what to expect, of each domain too, and of layers alone."""
        name, expected = self.aim.name, self.aim.expected
        return {
            "tokens": len(found_S),
            name: round(expected(found_S), 6),
            f"{name}_of_layers_alone": round(expected(alone_S), 6),
            f"domain_{name}": self._by_domain(found_S),
        }

    def _by_domain(self, change_S: torch.Tensor) -> dict[str, float]:
        bundle, domains = self.inputs.bundle, self.inputs.domains
        assert bundle is not None, "open refuses to go without"
        of_T = domains.of_tokens()
        sampled = evenly_spaced(len(of_T), bundle.description.gram_tokens)
        of_S = of_T[sampled[evenly_spaced(len(sampled), len(change_S))]]
        return {
            name: round(self.aim.expected(change_S[of_S == place]), 6)
            for place, name in enumerate(domains.names)
            if (of_S == place).any()
        }


@dataclass
class _Passed:
    """What is kept of the scores that pass."""

    layers: list[LayerEffects] = field(default_factory=list)
    samples: list[LayerSample] = field(default_factory=list)
    unreached: Unreached = field(default_factory=Unreached)

    def pin_super_experts(self) -> None:
        """Keep those whose rare huge outputs the model rests on: the cut would be refused."""
        found = super_experts(self.samples) or []
        for layer in self.layers:
            layer.pinned = tuple(one.expert for one in found if one.layer == layer.layer)


def has_effects(inputs: Inputs) -> bool:
    """Whether the scores hold effects."""
    return inputs.bundle is not None and inputs.bundle.description.effects is not None


def aim_of(inputs: Inputs) -> Aim:
    """What the effects of the scores are for; raises where there are none to decide from."""
    if inputs.bundle is None or not has_effects(inputs):
        where = "--data is scored without" if inputs.bundle is None else inputs.bundle.directory
        raise InputError(
            f"--spread effects decides from what experts' outputs do to predictions, and {where} "
            "holds no such effects; make a bundle with `leanmoe score --effects` and give --scores"
        )
    return _TEXT if inputs.bundle.description.effects == "text" else _PREDICTIONS
