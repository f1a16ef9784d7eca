"""A packed matrix is the matrix, and what is wrong in one is found before it is used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.errors import CheckpointError
from leanmoe.sparse.packing import (
    Overflow,
    Packed,
    check,
    from_indices,
    pack,
    pack_by,
    take_groups,
    take_rows,
    to_indices,
    unpack,
)
from leanmoe.sparse.sparse_format import SparseFormat

GROUP = 32
KEEP = st.integers(1, 31)
SEED = st.integers(0, 2**32 - 1)


def words_of(seed: int, rows: int, groups: int, share: float, dtype=np.uint16) -> np.ndarray:
    random = np.random.default_rng(seed)
    size = (rows, groups * GROUP)
    words = random.integers(1, np.iinfo(dtype).max // 2, size, dtype=dtype)
    sign = random.integers(0, 2, size, dtype=dtype) << dtype(8 * dtype().itemsize - 1)
    return np.where(random.random(size) < share, words | sign, 0).astype(dtype)


def balanced(seed: int, rows: int, groups: int, keep: int, dtype=np.uint16) -> np.ndarray:
    """At most ``keep`` in each group; some groups are empty."""
    words = words_of(seed, rows, groups, 1.0, dtype).reshape(rows, groups, GROUP)
    random = np.random.default_rng(seed)
    rank = random.random(words.shape).argsort(-1)
    most = random.integers(0, keep + 1, (rows, groups, 1))
    return np.where(rank < most, words, 0).reshape(rows, -1)


@given(SEED, st.integers(1, 9), st.integers(1, 4), KEEP, st.sampled_from([1, 2, 4]))
def test_a_balanced_matrix_comes_back(seed, rows, groups, keep, size):
    words = balanced(seed, rows, groups, keep, np.dtype(f"u{size}").type)
    packed = pack(words, keep, "w")
    assert packed.values_RV.shape == (rows, groups * keep)
    assert packed.mask_RB.shape == (rows, groups * GROUP // 8)
    assert np.array_equal(unpack(packed, keep, "w"), words)


@given(SEED, st.integers(1, 9), st.integers(1, 4), KEEP, st.floats(0, 1))
def test_any_matrix_comes_back_with_an_overflow_list(seed, rows, groups, keep, share):
    words = words_of(seed, rows, groups, share)
    packed = pack(words, keep, "w", overflow=True)
    beyond = np.maximum((words != 0).reshape(rows, groups, GROUP).sum(-1) - keep, 0).sum()
    assert len(packed.overflow.columns_N) == beyond
    assert np.array_equal(unpack(packed, keep, "w"), words)


@given(SEED, st.integers(2, 9), st.integers(2, 4), KEEP, st.data())
def test_a_part_of_a_packed_matrix_is_the_part_of_the_matrix(seed, rows, groups, keep, data):
    words = words_of(seed, rows, groups, 0.6)
    packed = pack(words, keep, "w", overflow=True)
    start = data.draw(st.integers(0, rows - 1))
    some = take_rows(packed, start, rows)
    assert np.array_equal(unpack(some, keep, "w"), words[start:])
    first = data.draw(st.integers(0, groups - 1))
    last = data.draw(st.integers(first + 1, groups))
    few = take_groups(packed, keep, first, last)
    assert np.array_equal(unpack(few, keep, "w"), words[:, first * GROUP : last * GROUP])


@given(SEED, st.integers(1, 5), st.integers(1, 3))
def test_two_of_four_are_two_bits_each(seed, rows, groups):
    random = np.random.default_rng(seed)
    rank = random.random((rows, groups * 8, 4)).argsort(-1)
    words = np.where(rank < 2, 7, 0).astype(np.uint16).reshape(rows, -1)
    mask = pack(words, 16, "w").mask_RB
    assert np.array_equal(from_indices(to_indices(mask), "w"), mask)


def test_the_bytes_are_those_of_the_format():
    words = np.zeros((1, 32), np.uint16)
    words[0, [0, 9, 31]] = 5, 6, 7
    packed = pack(words, 3, "w")
    assert packed.values_RV.tolist() == [[5, 6, 7]]
    assert packed.mask_RB.tolist() == [[0b1, 0b10, 0, 0b10000000]]
    assert to_indices(np.array([[0b1010_0011]], np.uint8)).tolist() == [[0b1101_0100]]


def test_a_mask_that_breaks_its_pattern_is_named():
    words = balanced(0, 4, 2, 16)
    words[2, 32:49] = 1
    words[2, 49:] = 0
    with pytest.raises(CheckpointError, match=r"weights 32 to 63 of row 2 hold 17 .* at most 16"):
        pack(words, 16, "expert 3")


def test_rows_of_no_whole_groups_are_named():
    with pytest.raises(CheckpointError, match="rows have 40 weights, no multiple of 32"):
        pack(np.zeros((2, 40), np.uint16), 16, "w")


@given(SEED, st.integers(0, 4 * 2 * 32 - 1))
def test_every_flipped_bit_of_a_mask_is_found(seed, bit):
    packed = pack(balanced(seed, 4, 2, 16), 16, "w")
    mask = packed.mask_RB.copy()
    mask.reshape(-1)[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CheckpointError, match="values and bitmask disagree"):
        check(Packed(packed.values_RV, mask), 16, "w")


@settings(max_examples=300)
@given(SEED, st.integers(0, 7), st.integers(-(2**15), 2**15 - 1))
def test_an_overflow_list_never_points_outside(seed, place, value):
    packed = pack(words_of(seed, 4, 2, 0.9), 16, "w", overflow=True)
    listed = packed.overflow
    rows, columns = listed.rows.copy(), listed.columns_N.copy()
    if place < len(rows):
        rows[place] = value
    else:
        columns[value % len(columns)] = value
    changed = Packed(packed.values_RV, packed.mask_RB, Overflow(rows, columns, listed.values_N))
    try:
        found = unpack(changed, 16, "w")
    except CheckpointError:
        return
    assert found.shape == (4, 64)


@pytest.mark.parametrize("marked", [True, False])
def test_a_weight_has_one_value(marked):
    packed = pack(words_of(1, 4, 2, 0.9), 16, "w", overflow=True)
    listed, columns = packed.overflow, packed.overflow.columns_N.copy()
    first = int(listed.rows[2])
    kept = int(np.unpackbits(packed.mask_RB[2], bitorder="little").argmax())
    columns[first + 1] = kept if marked else columns[first]
    changed = Packed(
        packed.values_RV, packed.mask_RB, Overflow(listed.rows, columns, listed.values_N)
    )
    with pytest.raises(CheckpointError, match=f"names column {columns[first + 1]} of row 2"):
        check(changed, 16, "expert 3")


def test_fours_that_hold_less_than_two_still_name_two_places():
    words = np.zeros((4, 64), np.uint16)
    words[1, ::4], words[2, 3::4], words[3, 8] = 7, 8, 9
    packed = pack_by(SparseFormat.of_pattern("2:4", "bfloat16"), words, "w")
    mask = from_indices(to_indices(packed.mask_RB), "w")
    assert np.array_equal(unpack(Packed(packed.values_RV, mask), 16, "w"), words)
    words[0, 4:7] = 1
    with pytest.raises(CheckpointError, match=r"weights 4 to 7 of row 0 hold 3 .* --pattern 2:4"):
        pack_by(SparseFormat.of_pattern("2:4", "bfloat16"), words, "w")
