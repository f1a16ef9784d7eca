"""The skip rule holds for any weights, beta and k, on host and device alike."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanmoe_runtime.skip.cpu import Planner
from tests.property.runtime.planning import masked, plan_of

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8))
WEIGHTS = SHAPES.flatmap(
    lambda shape: arrays.arrays(
        np.float32, shape, elements=st.floats(2**-20, 1.0, width=32, allow_nan=False)
    )
)
BETAS = st.floats(0.0, 1.0, width=32)
PLANNER = Planner()
# How long one example takes is the machine's matter.
without_deadline = settings(deadline=None)


def on_device(weights, beta, renormalize=True):
    kept, keep = masked(torch.from_numpy(weights), [beta], renormalize)
    return kept.numpy(), keep.numpy()


def on_host(weights, beta, renormalize=True):
    """The host's plan as kept weights [T, K]: ids are the slots, so pairs find their place."""
    slots = np.broadcast_to(np.arange(weights.shape[1], dtype=np.int32), weights.shape).copy()
    _, plan = plan_of(
        PLANNER, torch.from_numpy(weights), torch.from_numpy(slots), beta, renormalize, 0
    )
    if plan is None:
        return weights
    ids, values = plan.ids.numpy(), plan.weights.numpy()
    rows = np.arange(len(ids)) if plan.rows_N is None else plan.rows_N.numpy()
    kept = np.zeros_like(weights)
    kept[rows[:, None], ids] = values
    return kept


@without_deadline
@given(WEIGHTS, BETAS)
def test_keeps_exactly_what_reaches_beta_times_the_largest(weights, beta):
    _, keep = on_device(weights, beta)
    for row, kept in zip(weights, keep, strict=True):
        threshold = np.float32(beta) * row.max()
        assert kept.tolist() == [bool(w >= threshold) for w in row]


@without_deadline
@given(WEIGHTS, BETAS)
def test_the_largest_always_survives(weights, beta):
    _, keep = on_device(weights, beta)
    assert keep[np.arange(len(weights)), weights.argmax(axis=1)].all()


@without_deadline
@given(WEIGHTS)
def test_level_zero_keeps_everything(weights):
    assert on_device(weights, 0.0)[1].all()
    assert (on_host(weights, 0.0) == weights).all()


@without_deadline
@given(WEIGHTS, BETAS)
def test_renormalising_keeps_the_sum_and_not_renormalising_keeps_the_weights(weights, beta):
    renormalised, keep = on_device(weights, beta, renormalize=True)
    np.testing.assert_allclose(renormalised.sum(1), weights.sum(1), rtol=1e-5)
    plain, _ = on_device(weights, beta, renormalize=False)
    assert (plain[keep] == weights[keep]).all()
    assert (plain[~keep] == 0).all() and (renormalised[~keep] == 0).all()


@without_deadline
@given(WEIGHTS, BETAS, st.booleans())
def test_device_and_host_agree(weights, beta, renormalize):
    device, keep = on_device(weights, beta, renormalize)
    host = on_host(weights, beta, renormalize)
    assert ((host > 0) == keep).all()
    np.testing.assert_allclose(host, device, rtol=1e-5)
