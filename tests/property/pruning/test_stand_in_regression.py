"""What stands in for an expert is the nearest of its kind on the tokens it was fitted to."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_pruning.forward.stand_ins import LowRank
from leanmoe_pruning.replacing.regression import ExpertSums

WIDTH = 6


@st.composite
def cases(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, outputs and gates of a few tokens, fewer than dimensions now and then."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens, linear = draw(st.integers(1, 40)), draw(st.floats(0, 1))
    x_ND = torch.randn(tokens, WIDTH, generator=generator)
    map_DD = torch.randn(WIDTH, WIDTH, generator=generator)
    other_ND = torch.randn(tokens, WIDTH, generator=generator)
    y_ND = linear * (x_ND @ map_DD) + (1 - linear) * other_ND + draw(st.floats(-3, 3))
    return x_ND, y_ND, torch.rand(tokens, generator=generator) + 0.01


def fitted(case, rank: int, parts: int = 1, **settings: float) -> LowRank:
    sums = ExpertSums(WIDTH, rank)
    for held in zip(*(one.chunk(parts) for one in case), strict=True):
        sums.add(*held)
    return sums.solve(**settings)


def error(found: LowRank, case) -> float:
    x_ND, y_ND, gate_N = case
    wrong_N = (found.output(x_ND).double() - y_ND.double()).square().sum(1)
    return float((gate_N.double().square() * wrong_N).sum())


@settings(max_examples=40)
@given(cases(), st.integers(1, WIDTH), st.sampled_from([0.0, 0.01, 1.0]))
def test_a_map_never_errs_more_than_the_constant(case, rank, ridge):
    constant = error(fitted(case, 0), case)
    assert error(fitted(case, rank, ridge=ridge), case) <= constant * (1 + 1e-4) + 1e-5


@settings(max_examples=40)
@given(cases())
def test_the_constant_is_the_mean_weighed_by_the_squared_gates(case):
    _, y_ND, gate_N = case
    expected = (gate_N.square()[:, None] * y_ND).sum(0) / gate_N.square().sum()
    torch.testing.assert_close(fitted(case, 0).constant_D, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(cases(), st.integers(0, WIDTH))
def test_tokens_may_come_in_parts(case, rank):
    whole, parts = fitted(case, rank, ridge=0.1), fitted(case, rank, parts=3, ridge=0.1)
    probe = torch.eye(WIDTH)
    torch.testing.assert_close(parts.output(probe), whole.output(probe), rtol=1e-3, atol=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, WIDTH))
def test_a_linear_expert_of_that_rank_is_found_again(seed, rank):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    x_ND, constant_D = drawn(60, WIDTH), drawn(WIDTH)
    into_RD, out_RD = drawn(rank, WIDTH), drawn(rank, WIDTH)
    expert = LowRank(constant_D, into_RD, out_RD)
    case = (x_ND, expert.output(x_ND), torch.rand(60, generator=generator) + 0.1)
    found, probe = fitted(case, rank, ridge=0.0), drawn(10, WIDTH)
    torch.testing.assert_close(found.output(probe), expert.output(probe), rtol=1e-3, atol=1e-3)


def test_an_expert_without_tokens_becomes_zero():
    found = ExpertSums(WIDTH, 2).solve()
    assert not found.output(torch.ones(3, WIDTH)).any()
