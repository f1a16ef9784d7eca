"""The integer programme against every budget there is, on cases small enough to try them all."""

from __future__ import annotations

from itertools import product
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.errors import InputError
from leanmoe_pruning.budgets.programme import allot

LOSS = st.floats(0, 10, allow_subnormal=False) | st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def tables(draw):
    """Losses of 1 to 5 layers of up to 5 counts each, and a total that some budget meets."""
    step, least = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    counts = [least * step + step * i for i in range(draw(st.integers(1, 5)))]
    layers = [{count: draw(LOSS) for count in counts} for _ in range(draw(st.integers(1, 5)))]
    low, high = len(layers) * counts[0], len(layers) * counts[-1]
    return layers, draw(st.integers(low, high))


def total_loss(losses, counts) -> float:
    return fsum(layer[count] for layer, count in zip(losses, counts, strict=True))


def budgets(losses, total):
    return [one for one in product(*(sorted(layer) for layer in losses)) if sum(one) <= total]


@given(tables())
@settings(max_examples=150)
def test_no_budget_within_the_total_has_a_smaller_sum(case):
    losses, total = case
    found = allot(losses, total)
    assert sum(found) <= total
    least = min(total_loss(losses, one) for one in budgets(losses, total))
    assert total_loss(losses, found) == pytest.approx(least, rel=1e-9, abs=1e-9)


@given(tables())
@settings(max_examples=60)
def test_never_worse_than_the_same_number_everywhere(case):
    losses, total = case
    even = total // len(losses)
    found = allot(losses, total)
    if all(even in layer for layer in losses):
        uniform = total_loss(losses, [even] * len(losses))
        assert total_loss(losses, found) <= uniform * (1 + 1e-9) + 1e-9
    assert allot(losses, total) == found


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30)
def test_budgets_that_lose_alike_go_to_the_even_one(layers, even, width):
    table = dict.fromkeys(range(max(1, even - width), even + width + 1), 1.0)
    assert allot([table] * layers, even * layers) == (even,) * layers


def test_a_layer_that_needs_its_experts_gets_them_from_one_that_does_not():
    steep = {2: 10.0, 3: 6.0, 4: 3.0, 5: 1.0, 6: 0.0}
    flat = {2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.0}
    assert allot([steep, flat], 8) == (6, 2)


def test_a_total_below_what_the_router_needs_is_refused():
    with pytest.raises(InputError, match="router needs 4 in all"):
        allot([{2: 1.0, 3: 0.0}] * 2, 3)
