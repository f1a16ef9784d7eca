"""Losses from Gram matrices equal re-running the block with logits at -inf."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.families import MoEShape
from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.methods.naee.subsets import choose, subset_losses
from leanmoe_pruning.scores.gram import centred_gram, packed_size, squared_distance
from tests.layer_scores import bare_scores

D, F = 6, 10


@st.composite
def blocks(draw):
    """A random MoE block and tokens: (shape, experts, logits, x)."""
    n_experts = draw(st.integers(2, 7))
    top_k = draw(st.integers(1, n_experts))
    tokens = draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    experts = Experts(
        [normal(F, D) for _ in range(n_experts)],
        [normal(F, D) for _ in range(n_experts)],
        [normal(D, F) for _ in range(n_experts)],
    )
    shape = MoEShape(1, (0,), n_experts, top_k, D, F, draw(st.booleans()))
    return shape, experts, normal(tokens, n_experts), normal(tokens, D)


def everything(shape: MoEShape, tokens: int) -> torch.Tensor:
    return torch.ones(tokens, shape.top_k, dtype=torch.bool)


def scale(experts: Experts, x: torch.Tensor) -> float:
    """How large outputs are: a loss of zero is known to float32 of their squares."""
    return float(experts.every_output(x).norm(dim=-1).max()) * len(x) ** 0.5


def direct_output(shape, experts, logits, x, kept=None) -> torch.Tensor:
    """The block re-run with the dropped experts' logits at -inf, the slow way, in float64."""
    masked = logits.double().clone()
    for expert in range(shape.n_routed_experts):
        if kept is not None and expert not in kept:
            masked[:, expert] = float("-inf")
    weights, ids = masked.softmax(-1).topk(shape.top_k)
    if shape.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    every = experts.every_output(x).double()
    return sum(
        weights[:, k, None] * every[ids[:, k], torch.arange(len(x))] for k in range(shape.top_k)
    )


@given(blocks(), st.data())
@settings(max_examples=60)
def test_every_subset_loss_equals_a_direct_re_run(block, data):
    shape, experts, logits, x = block
    keep = data.draw(st.integers(shape.top_k, shape.n_routed_experts))
    batch_size = data.draw(st.integers(1, len(x)))
    batches = batch_of_tokens([(len(x), 1)], batch_size)
    exact = direct_output(shape, experts, logits, x)
    gram = centred_gram(experts.every_output(x), exact.float())
    noise = 5e-6 * scale(experts, x)
    dropped = list(combinations(range(shape.n_routed_experts), shape.n_routed_experts - keep))
    found = subset_losses(bare_scores(RouterRule.of(shape), logits, gram), dropped, batches)
    for subset, loss in zip(dropped, found.tolist(), strict=True):
        kept = [expert for expert in range(shape.n_routed_experts) if expert not in subset]
        gap = direct_output(shape, experts, logits, x, kept) - exact
        parts = [torch.linalg.norm(gap[batches == b]) for b in range(int(batches[-1]) + 1)]
        assert loss == pytest.approx(float(sum(parts)), rel=1e-4, abs=noise)


@given(blocks())
@settings(max_examples=40)
def test_routed_equals_the_mix_of_every_output(block):
    shape, experts, logits, x = block
    routing = route(logits, RouterRule.of(shape))
    found = experts.routed(x, routing.applied(), routing.ids_TK, everything(shape, len(x)))
    expected = direct_output(shape, experts, logits, x).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@given(blocks())
@settings(max_examples=20)
def test_keeping_all_loses_nothing(block):
    shape, experts, logits, x = block
    exact = direct_output(shape, experts, logits, x).float()
    gram = centred_gram(experts.every_output(x), exact)
    assert gram.shape == (len(x), packed_size(shape.n_routed_experts))
    routing = route(logits, RouterRule.of(shape))
    squared = squared_distance(gram, routing.applied()[None], routing.ids_TK[None], len(experts))
    assert float(squared.max().sqrt()) < 5e-6 * scale(experts, x)


def test_experts_no_token_chose_are_dropped_at_no_loss_in_lexicographic_order():
    shape = MoEShape(1, (0,), 6, 2, D, F, True)
    experts = Experts(
        [torch.randn(F, D) for _ in range(6)],
        [torch.randn(F, D) for _ in range(6)],
        [torch.randn(D, F) for _ in range(6)],
    )
    x = torch.randn(40, D)
    logits = torch.randn(40, 6) + torch.tensor([0.0, 50.0, 0.0, 50.0, 0.0, 0.0])
    exact = direct_output(shape, experts, logits, x).float()
    scores = bare_scores(RouterRule.of(shape), logits, centred_gram(experts.every_output(x), exact))
    choice = choose(scores, 4, batch_of_tokens([(40, 1)], 7))
    assert choice.kept == (1, 3, 4, 5)


def test_equal_losses_go_to_the_first_in_lexicographic_order():
    """All experts are one and the same, so every subset loses nothing."""
    shape = MoEShape(1, (0,), 4, 2, D, F, True)
    one = [torch.randn(F, D), torch.randn(F, D), torch.randn(D, F)]
    experts = Experts(*[[weight] * 4 for weight in one])
    x, logits = torch.randn(8, D), torch.randn(8, 4)
    exact = experts.output(0, x)
    scores = bare_scores(RouterRule.of(shape), logits, torch.zeros(8, packed_size(4)))
    assert centred_gram(experts.every_output(x), exact).shape == scores.output_gram_TP.shape
    choice = choose(scores, 2, batch_of_tokens([(8, 1)], 8))
    assert choice.kept == (2, 3)
