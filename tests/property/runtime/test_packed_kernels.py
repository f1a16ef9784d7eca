"""The CUDA kernels of packed experts, run on a CPU, against the sum over experts in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.errors import RuntimeSeamError
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe_runtime.sparse.regimes import Regime, Way, regime_of
from tests.unit.runtime.packed_host import Layer, host_library, launches, words_of

PATTERNS = ("16:32", "8:32", "24:32", "2:4", "0.5", "3:32")
GATHERED = tuple(pattern for pattern in PATTERNS if pattern != "2:4")
BOTH = (torch.bfloat16, torch.float16)
GROUPS = st.integers(1, 5)


def run(layer: Layer, way: Way, per_item: int, step: tuple[torch.Tensor, ...]) -> torch.Tensor:
    pairs = step[2].numel()
    items = min(pairs, layer.experts + pairs // per_item)
    return layer.block._packed(*step, Regime(way, per_item, items))


@pytest.mark.parametrize("pattern", GATHERED)
@settings(max_examples=4)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), GROUPS, GROUPS, st.booleans(), st.booleans())
def test_values_gathered_on_cuda_cores(pattern, seed, tokens, wide, hidden, ordered, half):
    layer = Layer(pattern, 32 * wide, 32 * hidden, BOTH[half], ordered=ordered, seed=seed)
    step = layer.step(tokens)
    assert layer.error(run(layer, Way.GATHER, min(tokens, 2), step), step) < 1


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=4)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    GROUPS,
    GROUPS,
    st.booleans(),
    st.sampled_from([(8, False), (8, True), (16, False), (16, True)]),
)
def test_weights_expanded_for_tensor_cores(pattern, seed, tokens, wide, hidden, ordered, how):
    per_item, half = how
    layer = Layer(pattern, 32 * wide, 32 * hidden, BOTH[half], ordered=ordered, seed=seed)
    step = layer.step(tokens)
    assert layer.error(run(layer, Way.TENSOR, per_item, step), step) < 1


# Of a source's float8: rows of a block, its columns.
BLOCKS = st.sampled_from([Blocks(128, 128), Blocks(32, 64), Blocks(64, 32), Blocks(5, 256)])


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=6)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.tuples(GROUPS, GROUPS),
    st.booleans(),
    st.sampled_from([(Way.GATHER, 2), (Way.GATHER, 1), (Way.TENSOR, 8), (Way.TENSOR, 16)]),
    st.booleans(),
    BLOCKS,
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_float8_is_computed_as_codes_and_scales_mean(
    pattern, seed, tokens, groups, ordered, how, half, blocks, cut
):
    way, per_item = how if pattern != "2:4" else (Way.TENSOR, 8)
    ordered = ordered and pattern != "2:4"
    first = (32 * cut[0] % blocks.rows, 32 * cut[1] % blocks.columns)
    sizes = [32 * count for count in groups]
    given = {"ordered": ordered, "seed": seed, "blocks": blocks, "first": first}
    layer = Layer(pattern, *sizes, BOTH[half], **given)
    tokens = min(tokens, per_item) if way is Way.GATHER else tokens
    step = layer.step(tokens)
    assert layer.error(run(layer, way, per_item, step), step) < 1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_float8_written_out_dense_is_rounded_once(pattern, dtype):
    ordered = pattern != "2:4"
    layer = Layer(pattern, 160, 96, dtype, ordered=ordered, blocks=Blocks(64, 64), first=(32, 32))
    layer.block.workspace.views((1,))[0][:] = float("nan")
    w13, w2 = layer.block.write_out(0, 3)
    for found, meant in ((w13, layer.gate_up), (w2, layer.down)):
        assert torch.equal(found, meant.float().to(dtype))


def test_float8_of_every_way_by_the_number_of_tokens():
    layer, seen = Layer("16:32", 256, 128, ordered=True, blocks=Blocks()), set()
    for tokens in (1, 9, 70):
        step = layer.step(tokens)
        seen.add(layer.block.regime(tokens, 2).way)
        assert layer.error(layer.block(*step), step) < 1, tokens
    assert seen == {*Way}


def test_blocks_that_cut_a_group_are_refused():
    with pytest.raises(RuntimeSeamError, match="columns or a power of two more on a GPU"):
        Layer("16:32", 96, 32, blocks=Blocks(128, 48))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "ordered"])
@pytest.mark.parametrize("sizes", [(32, 96), (160, 64), (1024, 32)], ids=str)
def test_written_out_dense_they_are_what_was_packed(pattern, ordered, sizes):
    layer = Layer(pattern, *sizes, ordered=ordered)
    layer.block.workspace.views((1,))[0][:] = float("nan")
    for first, experts in ((0, 3), (1, 1)):
        w13, w2 = layer.block.write_out(first, experts)
        for found, packed in ((w13, layer.gate_up), (w2, layer.down)):
            expected = packed[first : first + experts]
            # The sign of a zero is not kept.
            assert torch.equal(found, torch.where(expected == 0, 0, expected))
            assert not (words_of(found) == 0x8000).any()


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [("16:32", (1024, 64)), ("0.5", (1024, 64)), ("16:32", (512, 256)), ("2:4", (1056, 64))],
    ids=str,
)
@pytest.mark.parametrize("tokens", [2, 9])
def test_rows_that_fill_a_unit_or_share_one(pattern, sizes, tokens):
    layer = Layer(pattern, *sizes, ordered=True)
    step = layer.step(tokens)
    assert layer.error(layer.block(*step), step) < 1


@pytest.mark.parametrize("pattern", ["16:32", "2:4"])
def test_all_numbers_of_tokens_from_none_to_200(pattern):
    layer, seen = Layer(pattern, 64, 32, ordered=True), set()
    for tokens in (0, 1, 2, 3, 16, 17, 23, 24, 25, 70, 200):
        step = layer.step(tokens)
        seen.add(layer.block.regime(tokens, 2).way)
        assert layer.error(layer.block(*step), step) < 1, tokens
    assert seen == {*Way} - ({Way.GATHER} if pattern == "2:4" else set())


def test_more_pairs_than_a_block_sorts_by_itself():
    layer = Layer("16:32", 32, 32, experts=40)
    step = layer.step(80)
    before = launches()
    found = layer.block(*step)
    assert layer.block.regime(80, 2).way is Way.TENSOR
    assert launches() - before == 4
    assert layer.error(found, step) < 1


@pytest.mark.parametrize(
    ("tokens", "ordered", "count"), [(1, True, 3), (2, False, 3), (9, False, 3), (9, True, 4)]
)
def test_launches_of_a_layer(tokens, ordered, count):
    layer = Layer("16:32", 64, 32, ordered=ordered)
    step, before = layer.step(tokens), launches()
    layer.block(*step)
    assert launches() - before == count


def test_writing_out_dense_takes_two_launches():
    layer = Layer("16:32", 64, 32, ordered=True)
    before = launches()
    layer.block(*layer.step(100))
    assert launches() - before == 2


def test_experts_that_do_not_fit_the_workspace_are_written_out_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr("leanmoe_runtime.sparse.gpu.WORKSPACE_BYTES", 2 * 3 * 64 * 32 * 2)
    layer = Layer("16:32", 64, 32, experts=5, ordered=True)
    step, before = layer.step(100), launches()
    found = layer.block(*step)
    assert launches() - before == 6
    assert layer.error(found, step) < 1
    assert layer.block.workspace.views((2 * 3 * 64 * 32,))[0].numel()
    with pytest.raises(RuntimeError):
        layer.block.workspace.views((2 * 3 * 64 * 32 + 1,))


@pytest.mark.parametrize("way", [Way.GATHER, Way.TENSOR], ids=["gather", "tensor"])
def test_what_is_skipped_is_not_read(way):
    layer = Layer("16:32", 64, 64)
    x, weights, _ = layer.step(2)
    ids = torch.tensor([[-1, 2], [-1, -1]], dtype=torch.int32)
    for matrix in (layer.block.gate_up, layer.block.down):
        matrix.values[:2] = float("nan")
    found = run(layer, way, 2 if way is Way.GATHER else 8, (x, weights, ids))
    assert layer.error(found, (x, weights, ids)) < 1
    assert (found[1] == 0).all()


@pytest.mark.parametrize(
    ("pattern", "way"),
    [("16:32", Way.GATHER), ("3:32", Way.GATHER), ("16:32", Way.TENSOR), ("2:4", Way.TENSOR)],
)
def test_a_token_without_numbers_leaves_the_others_alone(pattern, way):
    layer = Layer(pattern, 160, 64, ordered=True)
    x, weights, _ = layer.step(2)
    ids = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    per_item = 2 if way is Way.GATHER else 8
    alone = run(layer, way, per_item, (x, weights, ids))
    x[0] = float("nan")
    found = run(layer, way, per_item, (x, weights, ids))
    assert found[0].isnan().all()
    assert torch.equal(found[1], alone[1])


@pytest.mark.parametrize("pattern", ["16:32", "0.5", "2:4"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_numbers_at_the_ends_of_their_range(pattern, tokens):
    """Products that cancel, denormal numbers, and sums of thousands."""
    layer = Layer(pattern, 64, 32, torch.float16, share=0.9)
    x, weights, ids = layer.step(tokens)
    x[:, ::2], x[:, 1::2] = 60.0, -60.0
    x[:, 5] = 6e-8
    step = (x, weights, ids)
    found, expected = layer.block(*step).double(), layer.expected(*step)
    assert ((found - expected).abs() <= 3e-3 * expected.abs().max()).all()


def test_the_number_of_blocks_changes_no_bit():
    layer = Layer("16:32", 64, 96, ordered=True)
    found = []
    for multiprocessors in (1, 2, 7):
        host_library().host_take(multiprocessors)
        steps = [(way, per) for way, per in ((Way.GATHER, 1), (Way.GATHER, 2), (Way.TENSOR, 8))]
        layer.random = type(layer.random)(type(layer.random.bit_generator)(3))
        step = layer.step(5)
        found.append(torch.stack([run(layer, *one, step) for one in steps]))
    host_library().host_take(2)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_other_activations(activation, tokens):
    layer = Layer("16:32", 64, 64, activation=activation)
    step = layer.step(tokens)
    assert layer.error(layer.block(*step), step) < 1


def test_an_input_too_wide_for_shared_memory_goes_to_tensor_cores():
    assert regime_of(1, 2, 8, gathers=True).way is Way.GATHER
    assert regime_of(1, 2, 8, gathers=False).way is Way.TENSOR


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "way"),
    [
        (1, 2, 8, Way.GATHER),
        (4, 2, 8, Way.GATHER),
        (8, 2, 8, Way.TENSOR),
        (64, 2, 8, Way.TENSOR),
        (65, 2, 8, Way.DENSE),
        (16, 8, 128, Way.GATHER),
        (17, 8, 128, Way.TENSOR),
        (256, 8, 128, Way.TENSOR),
        (257, 8, 128, Way.DENSE),
    ],
)
def test_the_way_follows_from_mean_tokens_of_an_expert(tokens, top_k, experts, way):
    assert regime_of(tokens, top_k, experts, gathers=True).way is way
