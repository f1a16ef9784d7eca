"""The wrapped router skips on its device, follows a level that changes, and counts.

The kernel is stood in for by the reference it is held against elsewhere (test_device_kernel.py).
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from leanmoe.messages import LevelTable, SkipMode
from leanmoe_runtime.device.layer import DeviceLayer, step_rows
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.router import wrap_router
from leanmoe_runtime.rule import decide
from leanmoe_runtime.state import LayerState, SkipState

E, K, T = 8, 3, 64


class ReferenceKernel:
    """What the device's kernel does, and how often it was launched."""

    def __init__(self) -> None:
        self.launches = 0

    def __call__(self, weights, ids, rows, table, *, renormalize, mode):
        self.launches += 1
        self.mode = mode
        made = decide(weights, ids, table.betas_R, rows, renormalize=renormalize, mode=mode)
        weights.copy_(made.weights_TK)
        ids.copy_(made.ids_TK)
        counted = [made.tokens, made.skipped, made.nonfinite, int(made.tokens > 0)]
        table.counts.add_(torch.tensor([*counted, made.distinct_experts]))
        table.mass.add_(made.dropped_mass)


class Wrapped:
    """A router of vLLM's own with our decision behind it."""

    def __init__(self, renormalize: bool = True, mode: SkipMode = SkipMode.ZERO) -> None:
        self.shared = SkipState()
        self.state = self.shared.add(LayerState(layer=0, top_k=K, renormalize=renormalize))
        self.step, self.kernel = StepRows(T, "cpu"), ReferenceKernel()
        self.router = CPURouter(top_k=K, global_num_experts=E, renormalize=renormalize)
        layer = DeviceLayer(self.state, self.shared, self.step, E, lambda: mode, self.kernel)
        wrap_router(self.router, layer)

    def route(self, logits):
        return self.router.select_experts(torch.empty(len(logits), 4), logits)


LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0))


def stock(renormalize: bool = True):
    router = CPURouter(top_k=K, global_num_experts=E, renormalize=renormalize)
    return router.select_experts(torch.empty(T, 4), LOGITS)


def same(found, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_level_zero_launches_nothing_and_still_counts_its_tokens():
    ours = Wrapped()
    ours.step.begin(None, T)
    assert same(ours.route(LOGITS), stock())
    assert ours.kernel.launches == 0
    counts = ours.state.counts()
    assert (counts.tokens, counts.routed, counts.skipped) == (T, T * K, 0)


def test_a_dummy_run_launches_at_level_zero_so_that_graphs_hold_the_kernel():
    ours = Wrapped()
    ours.step.reset()
    assert same(ours.route(LOGITS), stock())
    assert ours.kernel.launches == 1 and ours.state.counts().tokens == 0
    assert ours.state.calls == 1


@pytest.mark.parametrize("renormalize", [True, False])
def test_what_lies_below_beta_times_the_largest_gets_weight_zero(renormalize):
    ours = Wrapped(renormalize)
    weights, ids = stock(renormalize)
    ours.state.set_beta(0.4)
    ours.step.begin(None, T)
    kept, kept_ids = ours.route(LOGITS)
    below = weights < 0.4 * weights.amax(1, keepdim=True)
    assert torch.equal(ids, kept_ids)
    assert torch.equal(kept == 0, below)
    assert ours.state.counts().skipped == int(below.sum()) > 0
    if renormalize:
        torch.testing.assert_close(kept.sum(1), weights.sum(1))
    else:
        assert torch.equal(kept[~below], weights[~below])


def test_a_changed_level_needs_no_new_wrap_and_no_new_tensor():
    ours = Wrapped(mode=SkipMode.MASK)
    ours.route(LOGITS)
    addresses = [tensor.data_ptr() for tensor in vars(ours.state.device).values()]
    ours.step.begin(None, T)
    ours.state.set_beta(1.0)
    assert (ours.route(LOGITS)[1] == -1).sum() == T * (K - 1)
    ours.state.set_beta(0.0)
    assert same(ours.route(LOGITS), stock())
    assert [tensor.data_ptr() for tensor in vars(ours.state.device).values()] == addresses
    assert ours.state.counts().tokens == 2 * T


def test_a_request_s_own_level_launches_the_kernel_though_the_engine_is_exact():
    ours = Wrapped(mode=SkipMode.MASK)
    ours.shared.set_levels(LevelTable(key="key", betas={100: {0: 1.0}}))
    rows = torch.zeros(T, dtype=torch.int32)
    rows[5] = 101
    ours.shared.token_rows_T = rows
    ours.step.begin(rows, T)
    _, ids = ours.route(LOGITS)
    assert (ids[5] == -1).sum() == K - 1 and (ids == -1).sum() == K - 1
    assert ours.state.counts().steps == 1


def test_a_policy_set_after_a_forward_in_inference_mode_reaches_the_device():
    ours = Wrapped()
    with torch.inference_mode():
        ours.route(LOGITS)
    ours.state.set_beta(0.5)
    assert float(ours.state.device.betas_R[0]) == 0.5


def test_ids_without_a_sign_are_not_masked():
    ours = Wrapped(mode=SkipMode.MASK)
    layer = DeviceLayer(ours.state, ours.shared, ours.step, E, lambda: SkipMode.MASK, ours.kernel)
    layer(torch.rand(4, K), torch.zeros(4, K, dtype=torch.uint8))
    assert ours.kernel.mode is SkipMode.ZERO


def test_the_step_s_buffer_fits_what_the_router_can_see():
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=100),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=128),
        parallel_config=SimpleNamespace(data_parallel_size=4),
    )
    assert len(step_rows(config, "cpu", aligned=True).rows_T) == 128
    assert len(step_rows(config, "cpu", aligned=False).rows_T) == 512
