"""The skip rules hold for any weights, beta and k, on host and device alike."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanmoe.skip_rule import SkipRule, slots_kept, threshold_of
from leanmoe_runtime.skip.cpu import Planner
from tests.property.runtime.planning import FACTORS, masked, plan_of

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8))
WEIGHTS = SHAPES.flatmap(
    lambda shape: arrays.arrays(
        np.float32, shape, elements=st.floats(2**-20, 1.0, width=32, allow_nan=False)
    )
)
BETAS = st.floats(0.0, 1.0, width=32)
PLANNER = Planner()


def slots(weights):
    """Ids that are the slots, so that pairs find their place."""
    return torch.arange(weights.shape[1], dtype=torch.int32).repeat(len(weights), 1)


def on_device(weights, beta, renormalize=True, factors=()):
    ids = slots(weights)
    kept, keep = masked(torch.from_numpy(weights), [beta], renormalize, None, ids, factors)
    return kept.numpy(), keep.numpy()


def on_host(weights, beta, renormalize=True, factors=()):
    """The host's plan as kept weights [T, K]."""
    given = PLANNER, torch.from_numpy(weights), slots(weights)
    _, plan = plan_of(*given, beta, renormalize, 0, factors)
    if plan is None:
        return weights
    ids, values = plan.ids.numpy(), plan.weights.numpy()
    rows = np.arange(len(ids)) if plan.rows_N is None else plan.rows_N.numpy()
    kept = np.zeros_like(weights)
    kept[rows[:, None], ids] = values
    return kept


@given(WEIGHTS, BETAS)
def test_keeps_exactly_what_reaches_beta_times_the_largest(weights, beta):
    _, keep = on_device(weights, beta)
    for row, kept in zip(weights, keep, strict=True):
        threshold = np.float32(beta) * row.max()
        assert kept.tolist() == [bool(w >= threshold) for w in row]


@given(WEIGHTS, BETAS)
def test_the_largest_always_survives(weights, beta):
    _, keep = on_device(weights, beta)
    assert keep[np.arange(len(weights)), weights.argmax(axis=1)].all()


@given(WEIGHTS)
def test_level_zero_keeps_everything(weights):
    assert on_device(weights, 0.0)[1].all()
    assert (on_host(weights, 0.0) == weights).all()


@given(WEIGHTS, BETAS)
def test_renormalising_keeps_the_sum_and_not_renormalising_keeps_the_weights(weights, beta):
    renormalised, keep = on_device(weights, beta, renormalize=True)
    np.testing.assert_allclose(renormalised.sum(1), weights.sum(1), rtol=1e-5)
    plain, _ = on_device(weights, beta, renormalize=False)
    assert (plain[keep] == weights[keep]).all()
    assert (plain[~keep] == 0).all() and (renormalised[~keep] == 0).all()


EIGHT = st.lists(st.sampled_from(FACTORS.tolist()), min_size=8, max_size=8)


@given(WEIGHTS, st.sampled_from(SkipRule), BETAS, EIGHT, st.booleans())
def test_device_and_host_agree(weights, rule, beta, factors, renormalize):
    threshold = threshold_of(rule, beta, weights.shape[1])
    device, keep = on_device(weights, threshold, renormalize, factors)
    host = on_host(weights, threshold, renormalize, factors)
    assert ((host > 0) == keep).all()
    np.testing.assert_allclose(host, device, rtol=1e-5)


@given(WEIGHTS, BETAS, EIGHT)
def test_the_norm_rule_is_the_published_one_on_weights_times_factors(weights, beta, factors):
    judged = weights * np.array(factors, dtype=np.float32)[: weights.shape[1]]
    keep = on_device(weights, threshold_of(SkipRule.NORM, beta, 8), factors=factors)[1]
    assert (keep == on_device(judged, beta)[1]).all()
    assert keep[np.arange(len(weights)), judged.argmax(axis=1)].all()


@given(WEIGHTS, BETAS)
def test_the_static_rule_keeps_equally_many_of_every_token_and_the_largest(weights, beta):
    k = weights.shape[1]
    keep = on_device(weights, threshold_of(SkipRule.TOPK, beta, k))[1]
    kept = slots_kept(beta, k)
    assert 1 <= kept <= k and (keep.sum(1) == kept).all()
    for row, kept_row in zip(weights, keep, strict=True):
        assert row[kept_row].min() >= row[~kept_row].max(initial=0.0)


@given(WEIGHTS, st.sampled_from(SkipRule), EIGHT)
def test_the_ends_are_the_same_by_every_rule(weights, rule, factors):
    k = weights.shape[1]
    zero, one = threshold_of(rule, 0.0, k), threshold_of(rule, 1.0, k)
    assert zero == 0.0 and (on_host(weights, zero, factors=factors) == weights).all()
    kept = (on_host(weights, one, factors=factors) > 0).sum(1)
    assert (kept >= 1).all() and (rule is not SkipRule.TOPK or (kept == 1).all())


@given(st.sampled_from(SkipRule), BETAS, BETAS, st.integers(1, 9))
def test_a_larger_beta_never_keeps_more(rule, one, other, k):
    low, high = (threshold_of(rule, beta, k) for beta in sorted([one, other]))
    weights = np.random.default_rng(k).dirichlet(np.ones(k), size=20).astype(np.float32)
    factors = np.linspace(0.5, 2.0, k, dtype=np.float32)
    kept = [on_device(weights, beta, factors=factors)[1] for beta in (low, high)]
    assert (kept[1] <= kept[0]).all()
