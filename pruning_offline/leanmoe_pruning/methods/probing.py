"""What a decided cut is looked at for before it is written: what it may cost, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from leanmoe.errors import InputError
from leanmoe_pruning.evaluation.importance import (
    SuperExpert,
    cut_super_experts,
    importance_facts,
    super_experts,
)
from leanmoe_pruning.evaluation.redundancy import LayerSample, cuts_experts, redundancy_of
from leanmoe_pruning.methods.method import Decision, Inputs
from leanmoe_pruning.methods.naee.naee_effects import has_effects
from leanmoe_pruning.methods.naee.together import expected_divergence

_NOT_LOOKED = (
    "the score bundle lacks peak_output, which `leanmoe score` takes down since version 3, so "
    "nobody looked whether super experts go; score again to have it looked"
)


def probed(inputs: Inputs, decision: Decision, *, refuse: bool) -> Decision:
    """The decision with what the probes found of it, where experts go and there are scores.

    ``refuse`` raises where super experts go; else a note says so.
    """
    if not cuts_experts(decision.layers):
        return decision
    samples = decision.samples or inputs.samples()
    found = redundancy_of(samples, decision.layers)
    if found is None:
        return decision
    guarded, lost = _super_experts(samples, decision, refuse)
    if guarded is None:
        found = replace(found, divergence=_divergence(inputs, decision))
    notes = [note for note in (found.warning(), guarded, _few_windows(inputs)) if note is not None]
    facts = {"redundancy": found.facts(), "importance": importance_facts(samples), **lost}
    return replace(decision, notes=(*decision.notes, *notes), record={**decision.record, **facts})


def _divergence(inputs: Inputs, decision: Decision) -> float | None:
    """What the decided cut is expected to cost, where the bundle holds experts' effects.

    Not where super experts go: the first order says little of them. Nor 0: the gradients vanish.
    """
    if decision.divergence is not None:
        return decision.divergence or None
    if not has_effects(inputs):
        return None
    assert inputs.bundle is not None, "that is where the effects are"
    kept = {layer: plan.kept for layer, plan in decision.layers.items()}
    tokens = inputs.bundle.description.gram_tokens
    return expected_divergence(inputs.layers(), kept, tokens) or None


def _few_windows(inputs: Inputs) -> str | None:
    """What the bundle says of its windows, where they are too few."""
    halves = None if inputs.bundle is None else inputs.bundle.description.halves
    return halves.sentence() if halves is not None and halves.too_few() else None


def _super_experts(
    samples: Sequence[LayerSample], decision: Decision, refuse: bool
) -> tuple[str | None, dict[str, Any]]:
    """What to say and to record of super experts that go; raise where that is refused."""
    found = super_experts(samples)
    if found is None:
        return _NOT_LOOKED, {}
    gone = cut_super_experts(found, {layer: plan.kept for layer, plan in decision.layers.items()})
    facts = {"super_experts": [asdict(one) for one in found]}
    if not gone:
        return None, facts
    if refuse:
        raise InputError(
            f"{_gone(gone)}; keep more experts, name those that stay in a plan (--plan), or say "
            "--super-experts warn to cut all the same"
        )
    return _gone(gone), facts


def _gone(experts: Sequence[SuperExpert]) -> str:
    named = ", ".join(f"layer {one.layer} expert {one.expert} ({one.peak:.4g})" for one in experts)
    return (
        f"this cut removes super experts, whose rare huge outputs the model rests on (largest "
        f"absolute outputs in brackets): {named}"
    )
