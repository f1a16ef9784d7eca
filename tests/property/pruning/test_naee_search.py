"""The search for subsets that are too many to try: a local optimum of the very same loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.methods.naee.greedy import Elimination, refined
from leanmoe_pruning.methods.naee.removal import Removals
from leanmoe_pruning.methods.naee.subsets import Search, choose, chooser_of, subset_losses
from leanmoe_pruning.methods.selection import complement
from leanmoe_pruning.scores.gram import centred_gram
from leanmoe_pruning.scores.sampling import evenly_spaced
from tests.layer_scores import bare_scores

D = 6


@st.composite
def rules(draw):
    """(rule, experts): every way of weighing, in groups and not, steered by a bias or not."""
    kind = draw(st.sampled_from(["softmax", "sigmoid", "sparsemixer", "groups", "bias"]))
    top_k, experts = draw(st.integers(1, 3)), draw(st.integers(5, 8))
    renormalize, scale = draw(st.booleans()), draw(st.sampled_from([1.0, 2.5]))
    if kind == "sparsemixer":
        return RouterRule(2, False, "sparsemixer"), experts
    if kind == "groups":
        return RouterRule(top_k, renormalize, "softmax", scale, n_groups=2, top_groups=2), 8
    bias = torch.linspace(-0.3, 0.3, experts) if kind == "bias" else None
    scoring = "sigmoid" if kind != "softmax" else "softmax"
    return RouterRule(top_k, renormalize, scoring, scale, correction_E=bias), experts


@st.composite
def layers(draw):
    """(scores, batch of every token, how many to keep); some layers have a sampled Gram."""
    rule, experts = draw(rules())
    tokens = draw(st.integers(4, 40))
    sample = draw(st.sampled_from([tokens, tokens // 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, experts, generator=generator) * 2
    outputs = torch.randn(experts, tokens, D, generator=generator)
    routing = route(logits, rule)
    chosen = outputs[routing.ids_TK, torch.arange(tokens)[:, None]]
    target = (routing.applied()[..., None] * chosen).sum(1)
    rows = evenly_spaced(tokens, sample)
    scores = bare_scores(rule, logits, centred_gram(outputs[:, rows], target[rows]))
    batches = torch.arange(tokens) // draw(st.integers(1, tokens))
    step = rule.n_groups
    least = max(rule.top_k, step)
    keep = draw(st.integers(-(-least // step), experts // step)) * step
    return scores, batches, keep


def direct(scores, batches, kept) -> float:
    return float(subset_losses(scores, [complement(kept, scores.n_experts)], batches))


@given(layers())
@settings(max_examples=60)
def test_a_removal_loses_what_the_subset_loses(layer):
    scores, batches, _ = layer
    removals = Removals(scores, batches)
    everything = list(range(scores.n_experts))
    found = removals.losses(everything, everything).tolist()
    for expert, loss in enumerate(found):
        kept = [one for one in everything if one != expert]
        expected = direct(scores, batches, kept)
        assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert removals.loss(kept) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@given(layers(), st.sampled_from([Search("greedy"), Search("beam", 3)]))
@settings(max_examples=60)
def test_no_single_swap_improves_what_was_found(layer, search):
    scores, batches, keep = layer
    choice = chooser_of(scores, batches, search)(keep)
    size = scores.n_experts // scores.rule.n_groups
    held = torch.bincount(torch.tensor(choice.kept) // size, minlength=scores.rule.n_groups)
    assert len(choice.kept) == keep and len(set(held.tolist())) == 1
    loss = direct(scores, batches, choice.kept)
    assert choice.loss == pytest.approx(loss, rel=1e-5, abs=1e-6)
    best = choose(scores, keep, batches)
    # One loss is added up in float32, the other in float64.
    assert loss >= float(best.loss) * (1 - 1e-5) - 1e-6
    for incoming in complement(choice.kept, scores.n_experts):
        for outgoing in choice.kept:
            if incoming // size == outgoing // size:
                swapped = sorted({*choice.kept, incoming} - {outgoing})
                assert direct(scores, batches, swapped) >= loss * (1 - 1e-5) - 1e-6


def test_swaps_repair_what_elimination_got_wrong():
    """Experts 0 and 1 stand in for each other, so one of them leaves first; 2 alone is best."""
    logits = torch.zeros(30, 5)
    outputs = torch.randn(5, 30, D, generator=torch.Generator().manual_seed(0))
    outputs[1], outputs[2] = -outputs[0], 0.01 * outputs[2]
    target = torch.zeros(30, D)
    scores = bare_scores(RouterRule(1, True), logits, centred_gram(outputs, target))
    removals = Removals(scores, torch.zeros(30, dtype=torch.int64))
    kept, loss = refined(removals, (0,), 1)
    assert kept == (2,) and loss == pytest.approx(direct(scores, torch.zeros(30).long(), (2,)))


def test_elimination_drops_unused_experts_in_order():
    logits = torch.randn(40, 6) + torch.tensor([0.0, 50.0, 0.0, 50.0, 0.0, 0.0])
    outputs = torch.randn(6, 40, D)
    routing = route(logits, RouterRule(2, True))
    chosen = outputs[routing.ids_TK, torch.arange(40)[:, None]]
    target = (routing.applied()[..., None] * chosen).sum(1)
    scores = bare_scores(RouterRule(2, True), logits, centred_gram(outputs, target))
    removals = Removals(scores, torch.arange(40) // 7)
    assert Elimination(removals, 1, 1).best(4) == (1, 3, 4, 5)
