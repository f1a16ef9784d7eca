"""Leaving assignments out gives the same sum as computing them with weight zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanmoe_runtime.skip.cpu import REDIRECT_MAX_ROWS, SHAPES_STAY, Plan, Planner, run
from leanmoe_runtime.state import MANDATORY
from tests.property.runtime.planning import layer_of, masked, plan_of

D, E = 8, 6
EXPERTS_EDD = torch.randn(E, D, D, generator=torch.Generator().manual_seed(0))
PLANNER = Planner()


class CountingKernel:
    """What the stock grouped kernel computes, and how many pairs it was given."""

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, x, weights, ids):
        assert ids.min() >= 0, "the CPU kernel indexes its buffers with every id"
        assert weights.dtype == torch.float32 and ids.dtype == torch.int32
        assert weights.is_contiguous() and ids.is_contiguous() and x.is_contiguous()
        assert x.shape[0] == weights.shape[0] == ids.shape[0]
        self.pairs += ids.numel()
        out_TKD = torch.einsum("td,tkde->tke", x, EXPERTS_EDD[ids.long()])
        return torch.einsum("tke,tk->te", out_TKD, weights)


def routed(tokens: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(E)[:k] for _ in range(tokens)]).astype(np.int32)
    weights = random.dirichlet(np.ones(k), size=tokens).astype(np.float32)
    x = torch.from_numpy(random.standard_normal((tokens, D)).astype(np.float32))
    return x, torch.from_numpy(weights), torch.from_numpy(ids)


def output(x, weights, ids, plan: Plan | None, kernel=None):
    kernel = kernel or CountingKernel()
    return kernel(x, weights, ids) if plan is None else run(kernel, x, plan)


@given(
    st.integers(1, 50),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 999),
    st.booleans(),
    st.sampled_from([SHAPES_STAY, 0, REDIRECT_MAX_ROWS, 50]),
)
def test_same_sum_as_weight_zero(tokens, k, beta, seed, renormalize, redirect_max_rows):
    x, weights, ids = routed(tokens, k, seed)
    kept, keep = masked(weights, [beta], renormalize)
    skipped, plan = plan_of(PLANNER, weights, ids, beta, renormalize, redirect_max_rows)
    assert skipped == int((~keep).sum())
    expected = CountingKernel()(x, kept, ids)
    torch.testing.assert_close(output(x, weights, ids, plan), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 999))
def test_only_kept_pairs_reach_the_kernel(tokens, beta, seed):
    x, weights, ids = routed(tokens, 3, seed)
    skipped, plan = plan_of(PLANNER, weights, ids, beta, True, redirect_max_rows=0)
    kernel = CountingKernel()
    output(x, weights, ids, plan, kernel)
    assert kernel.pairs == ids.numel() - skipped


@given(st.integers(1, 50), st.integers(1, 4), st.floats(0, 1), st.integers(0, 999))
def test_shapes_stay_where_other_ranks_expect_them(tokens, k, beta, seed):
    _, weights, ids = routed(tokens, k, seed)
    skipped, plan = plan_of(PLANNER, weights, ids, beta, True, SHAPES_STAY)
    assert (plan is None) == (skipped == 0)
    if plan is not None:
        assert plan.rows_N is None and plan.ids.shape == plan.weights.shape == ids.shape
        assert int((plan.weights == 0).sum()) >= skipped


@pytest.mark.parametrize("rows", [1, 64, 5000])
def test_top_one_runs_the_kernel_with_one_expert_per_row(rows):
    x, weights, ids = routed(rows, 2, 3)
    kernel = CountingKernel()
    output(x, weights, ids, plan_of(PLANNER, weights, ids, 1.0, True)[1], kernel)
    assert kernel.pairs == rows


def test_redirect_reads_no_expert_of_a_skipped_slot():
    _, _, ids = routed(4, 2, 1)
    weights = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    skipped, plan = plan_of(PLANNER, weights, ids, 0.5, True, redirect_max_rows=4)
    assert skipped == 2
    assert plan.ids[1].tolist() == [ids[1, 0]] * 2 and plan.ids[2].tolist() == [ids[2, 1]] * 2
    assert plan.weights[1].tolist() == [1.0, 0.0] and plan.weights[2].tolist() == [0.0, 1.0]


def test_a_token_of_no_weight_stays_one_beside_others_that_skip():
    weights = torch.tensor([[0.0, 0.0], [0.9, 0.1]])
    ids = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    _, plan = plan_of(PLANNER, weights, ids, 0.5, True, redirect_max_rows=0)
    assert plan.weights.flatten().tolist() == [0.0, 0.0, 1.0]


def test_where_little_is_skipped_nothing_is_gathered():
    _, weights, ids = routed(64, 4, 2)
    weights[:] = 0.25
    for few in (16, 40):
        weights[:few, 3] = 0.01
        skipped, plan = plan_of(PLANNER, weights, ids, 0.5, True)
        assert skipped == few
        assert (plan.rows_N is None) == (few * 8 < 256)


def test_what_just_reaches_the_threshold_is_kept():
    ids = torch.tensor([[0, 1]] * 3, dtype=torch.int32)
    weights = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.8, 0.2]])
    beta = weights[1, 1].item() / weights[1, 0].item()
    assert plan_of(PLANNER, weights, ids, beta, True)[0] == 1
    assert plan_of(PLANNER, weights[:1], ids[:1], 1.0, True) == (0, None)


@given(st.integers(1, 50), st.integers(0, 999), st.booleans())
def test_every_token_follows_its_own_row_of_the_table(tokens, seed, renormalize):
    x, weights, ids = routed(tokens, 3, seed)
    betas = torch.tensor([0.3, 0.0, 1.0, 0.7])
    rows = torch.randint(4, (tokens,), generator=torch.Generator().manual_seed(seed)).int()
    layer = layer_of(betas.tolist(), renormalize, 3)
    plan = PLANNER.plan(weights, ids, layer, rows | MANDATORY)
    kept, keep = masked(weights, betas.tolist(), renormalize, rows)
    assert layer.counters.skipped == int((~keep).sum())
    expected = CountingKernel()(x, kept, ids)
    torch.testing.assert_close(output(x, weights, ids, plan), expected, rtol=1e-4, atol=1e-5)


def test_rows_for_another_number_of_tokens_are_refused():
    _, weights, ids = routed(3, 2, 0)
    with pytest.raises(ValueError, match="2 rows of betas were given for 3 tokens"):
        PLANNER.plan(weights, ids, layer_of([0.0], True), torch.zeros(2).int())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_token_whose_weights_are_no_numbers_keeps_all_and_is_counted(wrong, place):
    weights = torch.tensor([[0.2, 0.2, 0.2], [0.5, 0.3, 0.2]])
    weights[0, place] = wrong
    ids = torch.tensor([[2, 1, 0], [3, 4, 5]], dtype=torch.int32)
    layer = layer_of([0.9], True, 3)
    plan = PLANNER.plan(weights, ids, layer, redirect_max_rows=0)
    assert (layer.counters.skipped, layer.counters.nonfinite) == (2, 1)
    assert plan.ids.flatten().tolist() == [2, 1, 0, 3]
    assert plan.rows_N.tolist() == [0, 0, 0, 1]
    assert plan.weights.isfinite().flatten().tolist()[-1]


@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 999))
def test_the_counters_know_tokens_experts_read_and_gate_weight_left_out(tokens, beta, seed):
    _, weights, ids = routed(tokens, 3, seed)
    layer = layer_of([beta], True, 3)
    for _ in range(2):
        PLANNER.plan(weights, ids, layer)
    _, keep = masked(weights, [beta], True)
    counts = layer.counts()
    assert (counts.tokens, counts.routed, counts.steps) == (2 * tokens, 6 * tokens, 2)
    assert counts.distinct_experts == 2 * len(ids[keep].unique())
    expected = 2 * float((weights * ~keep).sum(1).div(weights.sum(1)).sum())
    assert counts.skipped_weight == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_weights_and_ids_of_any_layout_and_width_are_read_right():
    x, weights, ids = routed(6, 4, 5)
    expected = output(x, weights, ids, plan_of(PLANNER, weights, ids, 0.5, True)[1])
    strided = weights.t().contiguous().t().double()
    _, plan = plan_of(PLANNER, strided, ids.t().contiguous().t().long(), 0.5, True)
    torch.testing.assert_close(output(x, weights, ids, plan), expected)


def test_a_plan_is_the_same_after_other_shapes_were_planned():
    """Views are kept by shape, memory grows with the largest step; neither may mix steps up."""
    planner = Planner()
    steps = [routed(tokens, k, seed) for seed, (tokens, k) in enumerate([(3, 2), (3, 4), (900, 2)])]
    for x, weights, ids in [*steps, *reversed(steps)]:
        kept, _ = masked(weights, [0.5], True)
        _, plan = plan_of(planner, weights, ids, 0.5, True)
        expected = CountingKernel()(x, kept, ids)
        torch.testing.assert_close(output(x, weights, ids, plan), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [1, 7, 1024, 2500])
def test_gathered_outputs_are_summed_as_torch_sums_them(dtype, width):
    generator = torch.Generator().manual_seed(width)
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    pairs = torch.randn(6, width, generator=generator).to(dtype)
    pairs[3, 0] = float("nan")
    plan = Plan(torch.ones(6, 1), torch.zeros(6, 1, dtype=torch.int32), rows)
    found = run(lambda x, weights, ids: pairs, torch.zeros(3, width, dtype=dtype), plan)
    expected = torch.zeros(3, width).index_add_(0, rows, pairs.float()).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
