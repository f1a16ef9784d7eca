"""The skip rule and the betas that feed it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.skip_rule import SkipRule, slots_kept, threshold_of
from leanmoe_pruning.evaluation.levels import (
    Betas,
    beta_at,
    judged_ratios,
    level_grid,
    static_beta,
    variants_of,
)
from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.scores.layer_scores import median_beta, weight_ratios
from leanmoe_runtime.skip import rule as served


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
@settings(max_examples=80)
def test_top1_always_survives_and_the_rule_holds(routing, beta):
    keep = routing.kept(beta)
    assert bool(keep[:, 0].all())
    expected = routing.weights_TK >= torch.tensor(beta) * routing.weights_TK[:, :1]
    assert torch.equal(keep[:, 1:], expected[:, 1:])


@given(routings())
@settings(max_examples=40)
def test_level_zero_keeps_everything_and_renormalises_as_before(routing):
    keep = routing.kept(0.0)
    assert bool(keep.all())
    assert torch.equal(routing.applied(keep), routing.applied())


@given(routings(), st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_applied_weights(routing, beta):
    keep = routing.kept(beta)
    weights = routing.applied(keep)
    assert bool((weights[~keep] == 0).all())
    if routing.renormalize:
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    else:
        assert torch.equal(weights[keep], routing.weights_TK[keep])


@given(routings())
@settings(max_examples=60)
def test_betas_rise_from_0_to_1_and_the_middle_is_the_median(routing):
    betas = Betas(variants_of([SkipRule.RATIO], level_grid(11)))
    betas.add(3, routing)
    found = betas.by_layer[3]
    assert found == sorted(found)
    assert found[0] == 0.0
    assert found[-1] == 1.0
    ratios = weight_ratios(routing).astype(np.float64)
    if len(ratios):
        assert found[5] == betas.median[3] == median_beta(routing) == float(np.median(ratios))


@given(routings(), st.floats(0.01, 0.99))
@settings(max_examples=60)
def test_a_level_skips_its_share_of_the_calibration_assignments(routing, level):
    ratios = weight_ratios(routing)
    if len(ratios) == 0:
        return
    share = float((ratios < np.float32(beta_at(ratios, level))).mean())
    assert abs(share - level) <= 1.0 / len(ratios) + 1e-6


@given(routings(), st.sampled_from(SkipRule), st.floats(0, 1, width=32), st.integers(0, 999))
@settings(max_examples=120)
def test_every_rule_keeps_offline_what_it_keeps_when_served(routing, rule, beta, seed):
    n_experts, top_k = int(routing.ids_TK.max()) + 1, routing.weights_TK.shape[1]
    factors_E = 0.1 + torch.rand(n_experts, generator=torch.Generator().manual_seed(seed))
    thresholds = torch.full((len(routing.ids_TK),), threshold_of(rule, beta, top_k))
    judged = served.scores(routing.weights_TK, thresholds, factors_E[routing.ids_TK])
    expected = served.kept(judged, thresholds)
    keep = routing.kept(thresholds, factors_E)
    # Where weights tie with the largest, one telling keeps one of them and the other all.
    tied = (routing.weights_TK[:, 1:] == routing.weights_TK[:, :1]).any(-1)
    assert torch.equal(keep[~tied], expected[~tied])
    assert bool(keep.any(-1).all())


@given(routings(), st.floats(0.01, 0.99), st.integers(0, 999))
@settings(max_examples=60)
def test_a_level_of_the_norm_rule_skips_its_share(routing, level, seed):
    random = np.random.default_rng(seed)
    factors = (0.1 + random.random(int(routing.ids_TK.max()) + 1)).tolist()
    ratios = judged_ratios(routing, factors)
    if len(ratios) == 0:
        return
    assert (ratios <= 1).all()
    share = float((ratios < np.float32(beta_at(ratios, level))).mean())
    assert abs(share - level) <= 1.0 / len(ratios) + 1e-6


@given(st.integers(2, 16), st.integers(1, 48), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100)
def test_a_level_of_the_static_rule_skips_its_share_over_the_layers(top_k, layers, one, other):
    def skipped(level: float) -> list[int]:
        betas = [static_beta(level, top_k, place, layers) for place in range(layers)]
        return [top_k - slots_kept(beta, top_k) for beta in betas]

    low, high = sorted([one, other])
    assert abs(sum(skipped(low)) - low * (top_k - 1) * layers) <= 0.5 + 1e-6
    assert all(less <= more for less, more in zip(skipped(low), skipped(high), strict=True))
    assert set(skipped(0.0)) == {0} and set(skipped(1.0)) == {top_k - 1}
    assert max(skipped(one)) - min(skipped(one)) <= 1
