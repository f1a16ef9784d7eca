"""The wrapped router skips on its device, follows a level that changes, and counts.

Its launches are stood in for by the references they are held against elsewhere
(test_device_kernel.py).
"""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from leanmoe.errors import LevelError
from leanmoe.messages import LevelTable, PolicyUpdate, SkipMode, UnionBudget, UnionMode
from leanmoe_runtime.device import verification
from leanmoe_runtime.device.blocks import blocks_of, empty_blocks
from leanmoe_runtime.device.layer import DeviceLayer, step_rows
from leanmoe_runtime.device.routing import SOFTMAX, Routing
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.device.table import (
    DISTINCT,
    MASS,
    MASS_ONE,
    NONFINITE,
    SKIPPED,
    STEPS,
    TOKENS,
)
from leanmoe_runtime.router import wrap_router
from leanmoe_runtime.skip.rule import decide
from leanmoe_runtime.state import LayerState, SkipState

E, K, T = 8, 3, 64


class ReferenceLaunches:
    """What the device's kernels do, and which of them were launched."""

    Step = namedtuple("Step", "rows_T skipped_T table earlier renormalize mode")

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.off_by = 0.0

    def decide(self, weights, ids, step):
        self.launched.append("decide")
        self.mode, self.earlier = step.mode, step.earlier
        rule = {"renormalize": step.renormalize, "mode": step.mode}
        made = decide(weights, ids, step.table.betas_R, step.rows_T, **rule)
        weights.copy_(made.weights_TK)
        ids.copy_(made.ids_TK)
        counts = step.table.counts
        for place, count in (
            (TOKENS, made.tokens),
            (SKIPPED, made.skipped),
            (NONFINITE, made.nonfinite),
            (STEPS, int(made.tokens > 0)),
            (DISTINCT, made.distinct_experts),
            (MASS, round(made.skipped_weight * MASS_ONE)),
        ):
            counts[place] += count

    def route(self, logits, routing, step, *, ids, padding_T, blocks):
        weights, chosen = stock_choice(logits, routing.top_k, renormalize=routing.renormalize)
        weights, chosen = weights + self.off_by, chosen.to(ids)
        self.decide(weights, chosen, step)
        if padding_T is not None:
            chosen[padding_T] = -1
        self.launched[-1] = "route" if blocks is None else "route with blocks"
        return weights, chosen

    def spend(self, weights, ids, logits, union, step):
        self.decide(weights, ids, step)
        self.launched[-1] = "spend" if logits is None else "spend and move"
        self.budget = union.values.tolist()


def stock_choice(logits, top_k, *, renormalize):
    router = CPURouter(top_k=top_k, global_num_experts=E, renormalize=renormalize)
    return router.select_experts(torch.empty(len(logits), 4), logits)


class Experts:
    """What a layer's experts tell its router."""

    def __init__(self, mode: SkipMode, rows: int = 0) -> None:
        self.mode, self.rows, self.moves = mode, rows, False

    def device_mode(self):
        return self.mode

    def empty_blocks(self, tokens, logits):
        return empty_blocks(tokens, K, self.rows, logits.device) if self.rows else None

    def can_move(self):
        return self.moves


class Wrapped:
    """A router of vLLM's own with our decision behind it, or in its place."""

    def __init__(
        self,
        renormalize: bool = True,
        mode: SkipMode = SkipMode.ZERO,
        *,
        covered: bool = False,
        least_union: int = 0,
        rows: int = 0,
        padding=lambda tokens: None,
    ) -> None:
        self.shared = SkipState()
        state = LayerState(layer=0, top_k=K, renormalize=renormalize, n_experts=E)
        self.state = self.shared.add(state)
        self.step = StepRows(T, "cpu", least_union=least_union)
        self.shared.device_union = self.step.union
        self.kernel, self.experts = ReferenceLaunches(), Experts(mode, rows)
        self.router = CPURouter(top_k=K, global_num_experts=E, renormalize=renormalize)
        routing = Routing(E, K, SOFTMAX, renormalize) if covered else None
        self.layer = DeviceLayer(
            self.state, self.shared, self.step, self.experts, routing, padding, self.kernel
        )
        wrap_router(self.router, self.layer)

    def route(self, logits):
        return self.router.select_experts(torch.empty(len(logits), 4), logits)


LOGITS = torch.randn(T, E, generator=torch.Generator().manual_seed(0))


def stock(renormalize: bool = True):
    return stock_choice(LOGITS, K, renormalize=renormalize)


def same(found, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_level_zero_launches_nothing_and_still_counts_its_tokens():
    ours = Wrapped()
    ours.step.begin(None, T)
    assert same(ours.route(LOGITS), stock())
    assert ours.kernel.launched == []
    counts = ours.state.counts()
    assert (counts.tokens, counts.routed, counts.skipped) == (T, T * K, 0)


def test_a_dummy_run_launches_at_level_zero_so_that_graphs_hold_the_kernel():
    ours = Wrapped()
    ours.step.reset()
    assert same(ours.route(LOGITS), stock())
    assert ours.kernel.launched == ["decide"] and ours.state.counts().tokens == 0
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


def addresses_of(table):
    held = vars(table).values()
    return [tensor.data_ptr() for tensor in held if isinstance(tensor, torch.Tensor)]


def test_a_changed_level_needs_no_new_wrap_and_no_new_tensor():
    ours = Wrapped(mode=SkipMode.MASK)
    ours.route(LOGITS)
    addresses = addresses_of(ours.state.device)
    ours.step.begin(None, T)
    ours.state.set_beta(1.0)
    assert (ours.route(LOGITS)[1] == -1).sum() == T * (K - 1)
    ours.state.set_beta(0.0)
    assert same(ours.route(LOGITS), stock())
    assert addresses_of(ours.state.device) == addresses
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
    chosen = torch.rand(4, K), torch.zeros(4, K, dtype=torch.uint8)
    ours.layer(lambda: chosen, torch.rand(4, E), None, lambda logits: chosen)
    assert ours.kernel.mode is SkipMode.ZERO


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    monkeypatch.setattr(verification, "_FOUND", {})


def test_a_covered_router_decides_in_its_own_launch_at_every_level():
    ours = Wrapped(mode=SkipMode.MASK, covered=True)
    assert same(ours.route(LOGITS), stock())  # a dummy run, in which the kernel is tried
    tried = len(verification.SIZES) * len(verification._SPREADS)
    assert ours.kernel.launched == ["route"] * (tried + 1)
    ours.step.begin(None, T)
    ours.state.set_beta(1.0)
    assert (ours.route(LOGITS)[1] == -1).sum() == T * (K - 1)
    assert ours.kernel.launched[tried + 1 :] == ["route"]
    assert ours.state.counts().tokens == T  # what was tried is no traffic


def test_a_covered_router_launches_nothing_more_at_level_zero_where_python_runs():
    ours = Wrapped(covered=True)
    ours.step.begin(None, T)
    assert same(ours.route(LOGITS), stock()) and ours.kernel.launched == []


def test_a_kernel_that_does_not_give_stock_s_bits_is_not_used(caplog):
    ours = Wrapped(mode=SkipMode.MASK, covered=True)
    ours.kernel.off_by = 1e-7
    assert same(ours.route(LOGITS), stock())
    assert ours.kernel.launched[-1] == "decide"
    assert "the routing kernel rounds otherwise" in caplog.text


def test_a_kind_of_router_is_tried_once_for_all_layers():
    for _ in range(2):
        ours = Wrapped(covered=True)
        ours.route(LOGITS)
    assert ours.kernel.launched == ["route"]


def test_logits_of_another_width_keep_the_router_s_own_launches():
    """Expert-parallel load balancing counts copies of experts, logits do not."""
    ours = Wrapped(covered=True)
    chosen = stock()
    ours.layer(lambda: chosen, torch.rand(T, E - 1), None, lambda logits: chosen)
    assert ours.kernel.launched == ["decide"]


def test_padding_has_stock_s_id_of_none():
    padding = torch.zeros(T, dtype=torch.bool)
    padding[5] = True
    ours = Wrapped(covered=True, padding=lambda tokens: padding[:tokens])
    assert (ours.route(LOGITS)[1] == -1).nonzero()[:, 0].unique().tolist() == [5]


def test_blocks_travel_with_the_ids_they_were_made_of():
    ours = Wrapped(covered=True, rows=16)
    _, ids = ours.route(LOGITS)
    assert ours.kernel.launched[-1] == "route with blocks"
    assert blocks_of(ids, 16) is not None and blocks_of(ids, 32) is None
    assert blocks_of(ids.clone(), 16) is None


def policy(union: UnionBudget | None) -> PolicyUpdate:
    return PolicyUpdate(level=0.0, betas={0: 0.0}, version=1, union=union)


@pytest.mark.parametrize("covered", [False, True])
def test_a_budget_is_spent_behind_the_router_and_is_free_where_it_cannot_bind(covered):
    ours = Wrapped(covered=covered, least_union=5)
    ours.route(LOGITS)  # a dummy run launches it, so that graphs hold it
    assert ours.kernel.launched[-1] == "spend" and ours.kernel.budget == [0, 0]
    ours.route(LOGITS[:1])  # 3 assignments fit 5 experts
    assert ours.kernel.launched[-1] in ("decide", "route")
    ours.step.begin(None, T)
    launched = len(ours.kernel.launched)
    ours.route(LOGITS)  # no budget in force, and Python runs: stock's own launches
    assert len(ours.kernel.launched) == launched
    ours.shared.apply(policy(UnionBudget(experts=6, mode=UnionMode.REDIRECT)))
    ours.experts.moves = True
    ours.route(LOGITS)
    assert ours.kernel.launched[-1] == "spend and move" and ours.kernel.budget == [6, 1]
    ours.shared.apply(policy(None))
    ours.route(LOGITS)
    assert len(ours.kernel.launched) == launched + 1


@pytest.mark.parametrize(
    ("least", "asked", "held"), [(5, 4, "5 experts and more"), (0, 64, "none")]
)
def test_a_budget_that_no_graph_holds_changes_nothing_and_says_how_to_have_it(least, asked, held):
    ours = Wrapped(least_union=least)
    wanted = PolicyUpdate(level=1.0, betas={0: 0.7}, version=2, union=UnionBudget(experts=asked))
    with pytest.raises(
        LevelError, match=f"of {held}: start the server with --union-budget {asked}"
    ):
        ours.shared.apply(wanted)
    assert ours.shared.union is None and ours.state.beta == 0.0


def second_layer(ours: Wrapped, top_k: int = K) -> DeviceLayer:
    state = LayerState(layer=1, top_k=top_k, renormalize=True, n_experts=E)
    ours.shared.add(state)
    return DeviceLayer(state, ours.shared, ours.step, ours.experts, None, launches=ours.kernel)


def test_a_layer_of_threshold_zero_launches_where_another_skips():
    """Else nobody would finish the counts of the layer before it."""
    ours = Wrapped(mode=SkipMode.MASK)
    second_layer(ours)
    ours.step.begin(None, T)
    ours.shared.apply(PolicyUpdate(level=0.5, betas={0: 0.0, 1: 0.5}, version=1))
    assert same(ours.route(LOGITS), stock()) and ours.kernel.launched == ["decide"]
    ours.shared.apply(PolicyUpdate(level=0.0, betas={0: 0.0, 1: 0.0}, version=2))
    assert same(ours.route(LOGITS), stock()) and ours.kernel.launched == ["decide"]


def test_layers_of_different_top_k_spend_a_budget_at_the_same_sizes():
    """A layer that routed between two that spend would leave the first one's scales filled."""
    ours = Wrapped(least_union=6)
    ours.route(LOGITS[:2])
    assert ours.kernel.launched == ["decide"]  # 6 assignments fit 6 experts
    second_layer(ours, K + 1)
    ours.route(LOGITS[:2])
    assert ours.kernel.launched == ["decide", "spend"]


def test_a_kernel_is_tried_in_a_dummy_run_that_spends_a_budget():
    """Not in the first small step of an engine that runs without graphs."""
    ours = Wrapped(covered=True, least_union=5)
    ours.route(LOGITS)
    tried = len(verification.SIZES) * len(verification._SPREADS)
    assert ours.kernel.launched == ["route"] * tried + ["spend"]


def test_stock_is_tried_at_the_width_it_runs_at():
    """What vLLM compiled for a model's width is not compiled again for another."""
    widths, router = [], CPURouter(top_k=K, global_num_experts=E, renormalize=True)
    own = router._compute_routing

    def noted(hidden, *rest, **named):
        widths.append(hidden.shape[1])
        return own(hidden, *rest, **named)

    router._compute_routing = noted
    wrap_router(router, lambda this_step, logits, ids, stock_of: stock_of(logits[:1]))
    router.select_experts(torch.empty(T, 4), LOGITS)
    assert widths == [4]


def test_layers_finish_the_counts_of_the_one_before_them():
    ours = Wrapped()
    second = LayerState(layer=1, top_k=K, renormalize=True, n_experts=E)
    DeviceLayer(second, ours.shared, ours.step, ours.experts, None, launches=ours.kernel)
    assert ours.step.earlier(second.device) is ours.state.device
    assert ours.step.earlier(ours.state.device) is second.device


def test_the_step_s_buffer_fits_what_the_router_can_see():
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=100),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=128),
        parallel_config=SimpleNamespace(data_parallel_size=4),
    )
    assert len(step_rows(config, "cpu", aligned=True).rows_T) == 128
    assert len(step_rows(config, "cpu", aligned=False).rows_T) == 512
