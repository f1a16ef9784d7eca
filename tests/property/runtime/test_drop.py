"""Leaving assignments out gives the same sum as computing them with weight zero."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_runtime import drop
from leanmoe_runtime.rule import keep_mask, kept_weights

D, E = 8, 6
EXPERTS_EDD = torch.randn(E, D, D, generator=torch.Generator().manual_seed(0))


class CountingKernel:
    """What the stock grouped kernel computes, and how many pairs it was given."""

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, x, weights, ids):
        assert ids.min() >= 0, "the CPU kernel indexes its buffers with every id"
        assert weights.dtype == torch.float32 and ids.dtype == torch.int32
        assert weights.is_contiguous() and ids.is_contiguous() and x.is_contiguous()
        self.pairs += ids.numel()
        out_TKD = torch.einsum("td,tkde->tke", x, EXPERTS_EDD[ids.long()])
        return torch.einsum("tke,tk->te", out_TKD, weights)


def routed(tokens: int, k: int, seed: int):
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(E)[:k] for _ in range(tokens)]).astype(np.int32)
    weights = random.dirichlet(np.ones(k), size=tokens).astype(np.float32)
    x = torch.from_numpy(random.standard_normal((tokens, D)).astype(np.float32))
    return x, weights, torch.from_numpy(ids)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 4), st.floats(0, 1), st.integers(0, 999), st.booleans())
def test_same_sum_as_weight_zero(tokens, k, beta, seed, renormalize):
    x, weights, ids = routed(tokens, k, seed)
    keep = keep_mask(weights, beta)
    kept = kept_weights(weights, keep, renormalize)
    expected = CountingKernel()(x, torch.from_numpy(kept), ids)
    found = drop.run_kept(CountingKernel(), x, kept, ids, keep)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(st.integers(2, 50), st.floats(0, 1), st.integers(0, 999))
def test_only_kept_pairs_reach_the_kernel(tokens, beta, seed):
    x, weights, ids = routed(max(tokens, drop.REDIRECT_MAX_ROWS + 1), 3, seed)
    keep = keep_mask(weights, beta)
    kernel = CountingKernel()
    drop.run_kept(kernel, x, kept_weights(weights, keep, True), ids, keep)
    assert kernel.pairs == keep.sum()


@pytest.mark.parametrize("rows", [1, 64])
def test_top_one_runs_the_kernel_with_one_expert_per_row(rows):
    x, weights, ids = routed(rows, 2, 3)
    keep = keep_mask(weights, 1.0)
    kernel = CountingKernel()
    drop.run_kept(kernel, x, kept_weights(weights, keep, True), ids, keep)
    assert kernel.pairs == rows


def test_redirect_reads_no_expert_of_a_skipped_slot(monkeypatch):
    monkeypatch.setattr(drop, "REDIRECT_MAX_ROWS", 8)
    x, weights, ids = routed(4, 2, 1)
    keep = np.array([[True, True], [True, False], [False, True], [True, True]])
    kept = kept_weights(weights, keep, True)
    seen: list[torch.Tensor] = []

    def kernel(x, weights, ids):
        seen.append(ids)
        return CountingKernel()(x, weights, ids)

    drop.run_kept(kernel, x, kept, ids, keep)
    assert seen[0][1].tolist() == [ids[1, 0]] * 2 and seen[0][2].tolist() == [ids[2, 1]] * 2
