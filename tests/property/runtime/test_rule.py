"""The skip rule holds for any weights, beta and k, and host and device agree."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanmoe_runtime.rule import keep_mask, kept_weights, mask_on_device

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8))
WEIGHTS = SHAPES.flatmap(
    lambda shape: arrays.arrays(
        np.float32, shape, elements=st.floats(2**-20, 1.0, width=32, allow_nan=False)
    )
)
BETAS = st.floats(0.0, 1.0, width=32)


@given(WEIGHTS, BETAS)
def test_keeps_exactly_what_reaches_beta_times_the_largest(weights, beta):
    keep = keep_mask(weights, beta)
    for row, kept in zip(weights, keep, strict=True):
        threshold = np.float32(beta) * row.max()
        assert kept.tolist() == [bool(w >= threshold) for w in row]


@given(WEIGHTS, BETAS)
def test_the_largest_always_survives(weights, beta):
    keep = keep_mask(weights, beta)
    assert keep[np.arange(len(weights)), weights.argmax(axis=1)].all()


@given(WEIGHTS)
def test_level_zero_keeps_everything(weights):
    assert keep_mask(weights, 0.0).all()


@given(WEIGHTS, BETAS)
def test_renormalising_keeps_the_sum_and_not_renormalising_keeps_the_weights(weights, beta):
    keep = keep_mask(weights, beta)
    renormalised = kept_weights(weights, keep, renormalize=True)
    np.testing.assert_allclose(renormalised.sum(1), weights.sum(1), rtol=1e-5)
    plain = kept_weights(weights, keep, renormalize=False)
    assert (plain[keep] == weights[keep]).all()
    assert (plain[~keep] == 0).all() and (renormalised[~keep] == 0).all()


@given(WEIGHTS, BETAS, st.booleans())
def test_device_and_host_agree(weights, beta, renormalize):
    keep = keep_mask(weights, beta)
    host = kept_weights(weights, keep, renormalize)
    kept, mask = mask_on_device(torch.from_numpy(weights), torch.tensor(beta), renormalize)
    assert mask.numpy().tolist() == keep.tolist()
    np.testing.assert_allclose(kept.numpy(), host, rtol=1e-5)


def test_a_row_of_nan_keeps_one_expert():
    keep = keep_mask(np.full((2, 3), np.nan, dtype=np.float32), 0.5)
    assert keep.sum(axis=1).tolist() == [1, 1]
