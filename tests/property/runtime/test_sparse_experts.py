"""The kernel on packed experts against the sum over experts in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, silu

from leanmoe.sparse.packing import pack
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe_runtime.sparse.kernel import PackedExperts, PackedProjection, Scales, instruction_sets
from leanmoe_runtime.sparse.storage import first_kept, joined, put_half, put_rows

ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
}
FLOAT8 = torch.float8_e4m3fn
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
        words = weight.view(WORDS.get(dtype, torch.uint8)).numpy().view(f"u{dtype.itemsize}")
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


def in_blocks(random, weight_ERC, blocks, first=(0, 0), halves=1):
    """Codes, their scales, and what both mean in float64; small weights are subnormal codes."""
    experts, rows, columns = weight_ERC.shape
    size = rows // halves
    scales = torch.from_numpy(
        np.exp2(
            random.uniform(
                -12, 2, (experts, halves, *blocks.count(first[0] + size, first[1] + columns))
            )
        )
    ).float()
    row_of = (first[0] + torch.arange(size)) // blocks.rows
    column_of = (first[1] + torch.arange(columns)) // blocks.columns
    grown = scales[:, :, row_of][..., column_of].reshape(experts, rows, columns)
    codes = (weight_ERC / grown).clamp(-448, 448).to(FLOAT8)
    return codes, Scales(scales, blocks, first), codes.double() * grown.double()


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


def assert_close(found: torch.Tensor, true: torch.Tensor) -> None:
    """Half precision rounds by the size of what it rounds."""
    if len(found):
        largest = max(1.0, true.abs().max().item())
        assert (found.double() - true).abs().max() <= TOLERANCE[found.dtype] * largest


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
    assert_close(found, expected(x, weights, ids, gate_up, down, ACTIVATIONS[activation]))


@pytest.mark.parametrize(("dtype", "isa"), KINDS, ids=str)
@settings(max_examples=25)
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


def float8_block(random, groups, keep, share, isa, blocks, *, ordered, first=(0, 0)):
    """Three experts and what their projections mean in float64.

    First: where within a block of the source the part of tensor parallelism begins.
    """
    experts, wide, hidden = 3, 32 * groups[0], 32 * groups[1]
    drawn = [
        matrices(random, experts, rows, columns, share, torch.float64)
        for rows, columns in ((2 * hidden, wide), (wide, hidden))
    ]
    top, left = first
    gate_up, gate_up_scales, meant = in_blocks(random, drawn[0], blocks, (top, 0), halves=2)
    down, down_scales, down_meant = in_blocks(random, drawn[1], blocks, (0, left))
    orders = torch.from_numpy(np.stack([random.permutation(wide) for _ in range(experts)])).int()
    bits = gate_up.view(torch.uint8)
    if ordered:
        bits = torch.stack([w[:, order] for w, order in zip(bits, orders.long(), strict=True)])
    block = PackedExperts(
        replace(stored(bits.view(FLOAT8), keep, halves=True), scales=gate_up_scales),
        replace(stored(down, keep), scales=down_scales),
        orders if ordered else None,
        "silu",
        isa,
    )
    return block, meant, down_meant


def compare_float8(seed, tokens, groups, keep, share, dtype, isa, blocks, *, ordered, first=(0, 0)):
    random = np.random.default_rng(seed)
    block, meant, down_meant = float8_block(
        random, groups, keep, share, isa, blocks, ordered=ordered, first=first
    )
    x = torch.from_numpy(random.standard_normal((tokens, 32 * groups[0]))).to(dtype)
    weights = torch.from_numpy(random.random((tokens, 2), dtype=np.float32))
    ids = np.stack([random.permutation(3)[:2] for _ in range(tokens)] or [[0, 0]])
    ids = torch.from_numpy(np.where(random.random(ids.shape) < 0.3, -1, ids)[:tokens]).int()
    found = block(x, weights, ids)
    assert found.dtype == dtype
    assert_close(found, expected(x, weights, ids, meant, down_meant, silu))


# What a block of the source may be beside the groups of 32 that are packed.
BLOCKS = st.sampled_from([(128, 128), (32, 64), (64, 32), (32, 20), (96, 500)])


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 13),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 31),
    st.floats(0, 1),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    BLOCKS,
    st.booleans(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_float8_experts_compute_what_codes_and_scales_mean(
    isa, seed, tokens, groups, keep, share, dtype, block, ordered, cut
):
    blocks = Blocks(*block)
    first = (32 * cut[0] % blocks.rows, 32 * cut[1] % blocks.columns)
    given = {"ordered": ordered, "first": first}
    compare_float8(seed, tokens, groups, keep, share, dtype, isa, blocks, **given)


# Codes become numbers once for all tokens of an expert from the fifth on; inputs are held of 32.
AROUND = st.sampled_from([4, 5, 8, 9, 31, 32, 33, 36, 37, 70])


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    AROUND,
    st.tuples(st.integers(1, 5), st.sampled_from([1, 4, 13])),
    st.sampled_from([1, 8, 13, 16, 31]),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    BLOCKS,
    st.booleans(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_a_float8_token_gets_the_same_bits_alone_and_among_many(
    isa, seed, tokens, groups, keep, dtype, block, ordered, cut
):
    random, blocks = np.random.default_rng(seed), Blocks(*block)
    first = (32 * cut[0] % blocks.rows, 32 * cut[1] % blocks.columns)
    given = {"ordered": ordered, "first": first}
    experts, _, _ = float8_block(random, groups, keep, keep / 32, isa, blocks, **given)
    x = torch.from_numpy(random.standard_normal((tokens, 32 * groups[0]))).to(dtype)
    weights = torch.from_numpy(random.random((tokens, 2), dtype=np.float32))
    # Of the first expert every token.
    ids = torch.from_numpy(np.stack([np.zeros(tokens), random.integers(-1, 3, tokens)], 1)).int()
    alone = [experts(x[t, None], weights[t, None], ids[t, None]) for t in range(tokens)]
    assert torch.equal(experts(x, weights, ids), torch.cat(alone))


# Groups of a row: of AVX2, 32 are put in their places at a time.
WIDE = st.sampled_from([1, 32, 33, 66])


@pytest.mark.parametrize(("dtype", "isa"), KINDS, ids=str)
@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), AROUND, st.tuples(WIDE, WIDE), st.integers(1, 31), st.booleans())
def test_a_token_gets_the_same_bits_alone_and_among_many(
    dtype, isa, seed, tokens, groups, keep, ordered
):
    random = np.random.default_rng(seed)
    wide, hidden = 32 * groups[0], 32 * groups[1]
    gate_up = matrices(random, 2, 2 * hidden, wide, keep / 32, dtype)
    down = matrices(random, 2, wide, hidden, keep / 32, dtype)
    orders = torch.from_numpy(np.stack([random.permutation(wide) for _ in range(2)])).int()
    experts = PackedExperts(
        stored(gate_up, keep, halves=True),
        stored(down, keep),
        orders if ordered else None,
        "silu",
        isa,
    )
    x = torch.from_numpy(random.standard_normal((tokens, wide))).to(dtype)
    weights = torch.from_numpy(random.random((tokens, 2), dtype=np.float32))
    ids = torch.from_numpy(np.stack([np.zeros(tokens), random.integers(-1, 2, tokens)], 1)).int()
    alone = [experts(x[t, None], weights[t, None], ids[t, None]) for t in range(tokens)]
    found = experts(x, weights, ids)
    assert torch.equal(found, torch.cat(alone))
    unordered = (
        gate_up
        if not ordered
        else torch.stack(
            [w[:, order.argsort()] for w, order in zip(gate_up, orders.long(), strict=True)]
        )
    )
    assert_close(found, expected(x, weights, ids, unordered, down, silu))


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("keep", [8, 16])
def test_float8_in_blocks_of_the_source_with_many_rows(keep, isa):
    compare_float8(
        7, 90, (8, 8), keep, keep / 32, torch.float32, isa, Blocks(128, 128), ordered=True
    )


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@pytest.mark.parametrize("isa", instruction_sets())
def test_every_code_of_float8_is_read_as_its_number(isa, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[0x7F, 0xFF]] = 0
    # The hidden value is silu(1), and each row of `down` holds one code.
    gate_up, down = torch.zeros(1, 64, 256), torch.zeros(1, 256, 32, dtype=torch.uint8)
    gate_up[:, :, 0], down[0, :, 5] = 1, codes
    scales = [Scales(torch.ones(1, halves, 1, 1), Blocks(512, 512)) for halves in (2, 1)]
    block = PackedExperts(
        replace(stored(gate_up.to(FLOAT8), 1, halves=True), scales=scales[0]),
        replace(stored(down.view(FLOAT8), 1), scales=scales[1]),
        *(None, "silu", isa),
    )
    found = block(torch.ones(1, 256, dtype=dtype), torch.ones(1, 1), torch.zeros(1, 1).int())
    meant = codes.view(FLOAT8).double() * silu(torch.tensor(1.0)).double()
    # Neighbours among the codes differ by a sixteenth at least.
    assert torch.allclose(found[0].double(), meant, rtol=0.01, atol=1e-7)


WRONG_SCALES = {
    "none": lambda one: None,
    "another size": lambda one: replace(one, numbers=torch.ones(1, 1, 1, 2)),
    "another type": lambda one: replace(one, numbers=one.numbers.double()),
    "blocks that cut rows": lambda one: replace(one, blocks=Blocks(40, 128)),
    "a part that cuts rows": lambda one: replace(one, first=(16, 0)),
    "a part behind its block": lambda one: replace(one, first=(0, 128)),
}


@pytest.mark.parametrize("wrong", WRONG_SCALES)
def test_scales_of_something_else_are_refused(wrong):
    random = np.random.default_rng(0)
    gate_up, gate_scales, _ = in_blocks(random, torch.ones(1, 64, 32), Blocks(), halves=2)
    down, scales, _ = in_blocks(random, torch.ones(1, 32, 32), Blocks())
    with pytest.raises(ValueError, match="not of one layer"):
        PackedExperts(
            replace(stored(gate_up, 31, halves=True), scales=gate_scales),
            replace(stored(down, 31), scales=WRONG_SCALES[wrong](scales)),
            *(None, "silu"),
        )


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
