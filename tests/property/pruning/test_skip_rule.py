"""The skip rule and the betas that feed it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_pruning.evaluation.levels import Betas, beta_at, level_grid
from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.scores.layer_scores import median_beta, weight_ratios


@st.composite
def routings(draw):
    n_experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, n_experts))
    tokens = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, n_experts, generator=generator) * draw(st.floats(0.1, 8.0))
    rule = RouterRule(top_k, draw(st.booleans()))
    return route(logits, rule)


@given(routings(), st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_top1_always_survives_and_the_rule_holds(routing, beta):
    keep = routing.kept(beta)
    assert bool(keep[:, 0].all())
    expected = routing.weights_TK >= torch.tensor(beta) * routing.weights_TK[:, :1]
    assert torch.equal(keep[:, 1:], expected[:, 1:])


@given(routings())
@settings(max_examples=40, deadline=None)
def test_level_zero_keeps_everything_and_renormalises_as_before(routing):
    keep = routing.kept(0.0)
    assert bool(keep.all())
    assert torch.equal(routing.applied(keep), routing.applied())


@given(routings(), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_applied_weights(routing, beta):
    keep = routing.kept(beta)
    weights = routing.applied(keep)
    assert bool((weights[~keep] == 0).all())
    if routing.renormalize:
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    else:
        assert torch.equal(weights[keep], routing.weights_TK[keep])


@given(routings())
@settings(max_examples=60, deadline=None)
def test_betas_rise_from_0_to_1_and_the_middle_is_the_median(routing):
    betas = Betas(level_grid(11))
    betas.add(3, routing)
    found = betas.by_layer[3]
    assert found == sorted(found)
    assert found[0] == 0.0
    assert found[-1] == 1.0
    ratios = weight_ratios(routing).astype(np.float64)
    if len(ratios):
        assert found[5] == betas.median[3] == median_beta(routing) == float(np.median(ratios))


@given(routings(), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_a_level_skips_its_share_of_the_calibration_assignments(routing, level):
    ratios = weight_ratios(routing)
    if len(ratios) == 0:
        return
    share = float((ratios < np.float32(beta_at(ratios, level))).mean())
    assert abs(share - level) <= 1.0 / len(ratios) + 1e-6
