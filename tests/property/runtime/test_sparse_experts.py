"""The kernel on packed experts against the sum over experts in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from leanmoe.sparse.packing import pack
from leanmoe_runtime.sparse.kernel import PackedExperts, PackedProjection, instruction_sets
from leanmoe_runtime.sparse.storage import first_kept, joined, put_half, put_rows

ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
}
WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
# What half precision of hidden values and outputs leaves of a sum of these sizes.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
KINDS = [
    (dtype, isa)
    for dtype in WORDS
    for isa in instruction_sets()
    if dtype == torch.bfloat16 or isa != "avx512_bf16"
]


def matrices(random, experts, rows, columns, share, dtype) -> torch.Tensor:
    weight = random.standard_normal((experts, rows, columns)) / columns**0.5
    kept = random.random(weight.shape) < share
    # Some groups hold nothing, some everything.
    kept.reshape(-1, 32)[:: max(2, rows)] = False
    kept.reshape(-1, 32)[1 :: max(3, rows)] = True
    return torch.from_numpy(np.where(kept, weight, 0)).to(dtype)


def stored(weight_ERC: torch.Tensor, keep: int, *, halves: bool = False) -> PackedProjection:
    """Packed as the kernel reads it; ``halves``: gate rows over up rows."""
    experts, rows, columns = weight_ERC.shape
    dtype, listed = weight_ERC.dtype, []
    values = torch.empty(experts, rows, columns // 32 * keep, dtype=dtype)
    mask = first_kept((experts, rows, columns // 8), keep)
    for expert, weight in enumerate(weight_ERC):
        words = weight.view(WORDS[dtype]).numpy().view(f"u{dtype.itemsize}")
        packed = pack(words, keep, "w", overflow=True)
        signed = torch.from_numpy(packed.values_RV.view(f"i{dtype.itemsize}"))
        for place, packed_rows in (
            (values[expert], signed.view(dtype)),
            (mask[expert], torch.from_numpy(packed.mask_RB)),
        ):
            if not halves:
                put_rows(place, packed_rows, columns // 32)
                continue
            for half, some in enumerate(packed_rows.chunk(2)):
                put_half(place, half, some, columns // 32)
        listed.append(packed.overflow)
    overflow = joined(listed, dtype)
    return PackedProjection(values, mask, overflow if len(overflow[1]) else ())


def expected(x, weights, ids, gate_up, down, activate) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(ids.tolist()):
        for place, expert in enumerate(row):
            if expert < 0:
                continue
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            hidden = activate(gate) * up
            out[token] += weights[token, place].double() * (down[expert].double() @ hidden)
    return out


def compare(seed, tokens, groups, keep, share, dtype, isa, activation="silu", ordered=False):
    random = np.random.default_rng(seed)
    experts, top_k, wide, hidden = 3, 2, 32 * groups[0], 32 * groups[1]
    gate_up = matrices(random, experts, 2 * hidden, wide, share, dtype)
    down = matrices(random, experts, wide, hidden, share, dtype)
    x = torch.from_numpy(random.standard_normal((tokens, wide))).to(dtype)
    weights = torch.from_numpy(random.random((tokens, top_k), dtype=np.float32))
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)] or [[0, 0]])
    ids = torch.from_numpy(np.where(random.random(ids.shape) < 0.3, -1, ids)[:tokens]).int()
    orders = torch.from_numpy(np.stack([random.permutation(wide) for _ in range(experts)])).int()
    packed = torch.stack([w[:, order] for w, order in zip(gate_up, orders.long(), strict=True)])
    block = PackedExperts(
        stored(packed if ordered else gate_up, keep, halves=True),
        stored(down, keep),
        orders if ordered else None,
        activation,
        isa,
    )
    found = block(x, weights, ids)
    assert found.dtype == dtype
    assert found.shape == x.shape
    error = found.double() - expected(x, weights, ids, gate_up, down, ACTIVATIONS[activation])
    assert error.abs().max() <= TOLERANCE[dtype] if tokens else True


@pytest.mark.parametrize(("dtype", "isa"), KINDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 13),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 31),
    st.floats(0, 1),
    st.booleans(),
)
def test_packed_experts_compute_their_sum(dtype, isa, seed, tokens, groups, keep, share, ordered):
    compare(seed, tokens, groups, keep, share, dtype, isa, ordered=ordered)


@pytest.mark.parametrize(("dtype", "isa"), KINDS, ids=str)
@pytest.mark.parametrize("keep", [8, 16, 24])
def test_the_patterns_of_the_format_with_many_rows(dtype, isa, keep):
    compare(7, 200, (4, 2), keep, keep / 32, dtype, isa)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    compare(3, 5, (2, 2), 16, 0.5, torch.float32, "", activation)


def test_an_expert_that_is_not_there_is_refused():
    weights = torch.zeros(1, 64, 32)
    ids = torch.tensor([[1]], dtype=torch.int32)
    gate_up, down = stored(weights, 16, halves=True), stored(torch.zeros(1, 32, 32), 16)
    block = PackedExperts(gate_up, down, None, "silu")
    with pytest.raises(IndexError, match="expert 1 of 1"):
        block(torch.zeros(1, 32), torch.ones(1, 1), ids)


# Inputs and ids of 2 rows fit together; each is wrong in one way.
WRONG_STEPS = {
    "another type": (torch.zeros(2, 32).half(), torch.ones(2, 1)),
    "another width": (torch.zeros(2, 64), torch.ones(2, 1)),
    "more rows": (torch.zeros(3, 32), torch.ones(2, 1)),
    "fewer weights": (torch.zeros(2, 32), torch.ones(1, 1)),
}


@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_step_of_another_size_is_refused_before_memory_is_read(wrong):
    x, ones = WRONG_STEPS[wrong]
    weights = torch.zeros(1, 64, 32)
    gate_up, down = stored(weights, 16, halves=True), stored(torch.zeros(1, 32, 32), 16)
    with pytest.raises(ValueError, match=r"expected rows of 32 of torch\.float32"):
        PackedExperts(gate_up, down, None, "silu")(x, ones, torch.zeros(2, 1, dtype=torch.int32))


@pytest.mark.parametrize(
    ("rows", "width", "keep", "dtype"),
    [
        (128, 32, 16, torch.float32),
        (64, 64, 16, torch.float32),
        (64, 32, 8, torch.float32),
        (64, 32, 16, torch.float16),
    ],
)
def test_projections_of_other_sizes_are_refused(rows, width, keep, dtype):
    gate_up = stored(torch.zeros(1, rows, width, dtype=dtype), keep, halves=True)
    down = stored(torch.zeros(1, 32, 32), 16)
    with pytest.raises(ValueError, match="not of one layer"):
        PackedExperts(gate_up, down, None, "silu")


def test_threads_change_no_bit():
    random = np.random.default_rng(0)
    gate_up = matrices(random, 2, 128, 64, 0.5, torch.float32)
    down = matrices(random, 2, 64, 64, 0.5, torch.float32)
    x = torch.from_numpy(random.standard_normal((9, 64), dtype=np.float32))
    ids = torch.tensor([[0, 1]] * 9, dtype=torch.int32)
    block = PackedExperts(stored(gate_up, 16, halves=True), stored(down, 16), None, "silu")
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(block(x, torch.full((9, 2), 0.5), ids))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
