"""The budget on distinct experts against the same rule told a second time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.skip_rule import SkipRule, threshold_of
from leanmoe_bench.soak.recount import decide
from leanmoe_runtime.skip.cpu import Budget, Planner, run
from leanmoe_runtime.state import MANDATORY
from tests.property.runtime.planning import FACTORS, layer_of
from tests.property.runtime.test_cpu_forms import CountingKernel, D, E

PLANNER = Planner()


def routing(tokens: int, k: int, seed: int, renormalize: bool):
    """(x, logits, weights, ids) of a softmax router."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((tokens, E)).astype(np.float32)
    ids = np.argsort(-logits, axis=1)[:, :k].astype(np.int32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weights = np.take_along_axis(probabilities, ids, 1)
    if renormalize:
        weights = weights / weights.sum(1, keepdims=True)
    x = random.standard_normal((tokens, D)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(logits), torch.from_numpy(weights), ids


def expected(logits, weights, ids, beta, budget, bound, moves, renormalize, factors):
    """(weight of every expert [T, E], experts read, assignments moved), by the second telling."""
    betas = np.full(len(ids), beta, dtype=np.float32)
    logits = logits if moves else None
    found, moved = decide(weights, ids, betas, bound, E, budget, logits, factors_E=factors)
    scale = weights.sum(1) / found.sum(1) if renormalize else np.ones(len(ids))
    return (found * scale[:, None]).astype(np.float32), int((found > 0).any(0).sum()), moved


@settings(max_examples=200)
@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from(SkipRule),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.integers(1, E + 2),
    st.integers(0, 9999),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 4, 50]),
)
def test_like_the_rule_written_out(
    tokens, k, rule, beta, budget, seed, moves, renormalize, redirect
):
    x, logits, weights, ids = routing(tokens, k, seed, renormalize)
    random = np.random.default_rng(seed)
    bound, factors = random.random(tokens) < 0.2, random.choice(FACTORS, size=E)
    rows = torch.from_numpy(np.where(bound, MANDATORY, 0).astype(np.int32))
    threshold = threshold_of(rule, beta, k)
    layer = layer_of([threshold], renormalize, k, E, factors)
    wanted, distinct, moved = expected(
        logits.numpy(), weights.numpy(), ids, threshold, budget, bound, moves, renormalize, factors
    )
    plan = PLANNER.plan(
        *(weights, torch.from_numpy(ids), layer, rows),
        Budget(budget, logits if moves else None),
        redirect,
    )
    kernel = CountingKernel()
    stock = (weights, torch.from_numpy(ids))
    found = kernel(x, *stock) if plan is None else run(kernel, x, plan)
    every = torch.arange(E, dtype=torch.int32).repeat(tokens, 1)
    exact = CountingKernel()(x, torch.from_numpy(wanted), every)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)
    counts = layer.counters
    assert counts.substituted == moved
    assert counts.skipped == tokens * k - int((wanted > 0).sum())
    assert counts.distinct_experts == distinct


def test_a_budget_that_everything_fits_in_changes_nothing():
    _, logits, weights, ids = routing(4, 2, 0, True)
    layer = layer_of([0.0], True, 2, E)
    assert PLANNER.plan(weights, torch.from_numpy(ids), layer, None, Budget(E, logits)) is None
    assert layer.counters.skipped == layer.counters.substituted == 0


def test_every_token_keeps_its_top_expert_even_past_the_budget():
    ids = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
    weights = torch.tensor([[0.6, 0.4]] * 3)
    layer = layer_of([0.0], False, 2, E)
    plan = PLANNER.plan(weights, ids, layer, None, Budget(1))
    assert plan.ids.flatten().tolist() == [0, 2, 4]
    assert layer.counters.distinct_experts == 3


def test_logits_of_another_step_are_refused():
    _, logits, weights, ids = routing(4, 2, 0, True)
    with pytest.raises(ValueError, match=r"logits are \[3, 6\], expected \[4, 6\]"):
        PLANNER.plan(
            *(weights, torch.from_numpy(ids), layer_of([0.0], True, 2, E), None),
            Budget(2, logits[:3]),
        )
