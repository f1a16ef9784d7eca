"""The wrapped router masks on the device, follows a level that changes, and counts."""

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from leanmoe_runtime.router import wrap_router
from leanmoe_runtime.state import LayerState

E, K, T = 8, 3, 64


def routed(beta: float, renormalize: bool):
    """vLLM's own router with and without our wrap, on the same logits."""
    torch.manual_seed(0)
    logits = torch.randn(T, E)
    router = CPURouter(top_k=K, global_num_experts=E, renormalize=renormalize)
    stock = router.select_experts(torch.empty(T, 4), logits)
    state = LayerState(layer=0, top_k=K, renormalize=renormalize)
    wrap_router(router, state)
    state.set_beta(beta)
    return stock, router.select_experts(torch.empty(T, 4), logits), state


def test_level_zero_changes_nothing():
    stock, ours, state = routed(0.0, renormalize=True)
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-6, atol=0)
    assert torch.equal(ours[1], stock[1])
    assert state.counts().skipped == 0 and state.counts().routed == T * K


@pytest.mark.parametrize("renormalize", [True, False])
def test_what_lies_below_beta_times_the_largest_gets_weight_zero(renormalize):
    (weights, ids), (kept, kept_ids), state = routed(0.4, renormalize)
    below = weights < 0.4 * weights.amax(1, keepdim=True)
    assert torch.equal(ids, kept_ids)
    assert torch.equal(kept == 0, below)
    assert state.counts().skipped == int(below.sum()) > 0
    if renormalize:
        torch.testing.assert_close(kept.sum(1), weights.sum(1))
    else:
        assert torch.equal(kept[~below], weights[~below])


def test_a_changed_level_needs_no_new_wrap():
    router = CPURouter(top_k=2, global_num_experts=E, renormalize=True)
    state = LayerState(layer=0, top_k=2, renormalize=True)
    wrap_router(router, state)
    logits = torch.randn(T, E)
    state.set_beta(1.0)
    top_one = router.select_experts(torch.empty(T, 4), logits)[0]
    state.set_beta(0.0)
    exact = router.select_experts(torch.empty(T, 4), logits)[0]
    assert (top_one == 0).sum() == T and (exact == 0).sum() == 0
    assert state.counts().tokens == 2 * T
