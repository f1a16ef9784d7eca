"""Which weights a pattern zeroes, against the rule written out row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanmoe.errors import CheckpointError, InputError
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_pruning.methods.weights.pattern import OfEvery, Unstructured, read_pattern


def lowest(scores: list[float], sizes: list[float], count: int) -> set[int]:
    """By score, then by size, then by place."""
    order = sorted(range(len(scores)), key=lambda place: (scores[place], sizes[place], place))
    return set(order[:count])


def small_matrix(data: st.DataObject, columns: int) -> torch.Tensor:
    """Few different numbers, so that many are equal."""
    rows = data.draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns)
    return torch.tensor(data.draw(numbers), dtype=torch.float32).view(rows, columns)


@given(data=st.data(), columns=st.integers(1, 12), sparsity=st.floats(0.01, 0.99))
def test_unstructured_zeroes_the_lowest_of_each_row(data, columns, sparsity):
    score = small_matrix(data, columns)
    size = small_matrix(data, columns)[:1].expand_as(score)
    keep = Unstructured(sparsity).keep(score, size)
    for row, scores in enumerate(score.tolist()):
        dropped = lowest(scores, size[row].tolist(), int(columns * sparsity))
        assert keep[row].tolist() == [place not in dropped for place in range(columns)]


@given(data=st.data(), groups=st.integers(1, 3), group=st.integers(2, 12))
def test_of_every_group_the_lowest_go(data, groups, group):
    kept = data.draw(st.integers(1, group - 1))
    score = small_matrix(data, groups * group)
    size = small_matrix(data, groups * group)[:1].expand_as(score)
    keep = OfEvery(kept, group).keep(score, size)
    for row, scores in enumerate(score.tolist()):
        for start in range(0, groups * group, group):
            part = slice(start, start + group)
            gone = lowest(scores[part], size[row].tolist()[part], group - kept)
            assert keep[row, part].tolist() == [place not in gone for place in range(group)]


@pytest.mark.parametrize(
    ("sparsity", "pattern", "tag"),
    [
        (0.5, None, "unstructured50"),
        (0.7, "unstructured", "unstructured70"),
        (None, "unstructured", "unstructured50"),
        (0.9999999, None, "unstructured99.99999"),
        (0.07, None, "unstructured7"),
        (None, None, "16of32"),
        (None, "4:8", "4of8"),
        (None, "24:32", "24of32"),
    ],
)
def test_tags(sparsity, pattern, tag):
    assert read_pattern(sparsity, pattern).tag == tag


@pytest.mark.parametrize("sparsity", [0.5, 0.9999999, 1 - 2**-53, 0.00001, 0.1234567, 1 / 3])
def test_a_share_is_told_with_all_its_digits_and_packed_by(sparsity):
    """The manifest's words are what `leanmoe pack` reads."""
    text = read_pattern(sparsity, None).text
    assert float(text) == sparsity
    how = SparseFormat.of_pattern(text, "bfloat16")
    assert how.keep == min(max(round((1 - sparsity) * 32), 1), 31)


@pytest.mark.parametrize(
    ("sparsity", "pattern", "said"),
    [
        (0.5, "2:4", "both were given"),
        (0.5, "16:32", "both were given"),
        (0.0, "unstructured", "above 0 and below 1"),
        (0.0, None, "above 0 and below 1"),
        (1.0, None, "above 0 and below 1"),
        (None, "4:4", "N of every M"),
        (None, "0:4", "N of every M"),
        (None, "2/4", "N of every M"),
        (None, "2:999", "N of every M"),
    ],
)
def test_what_is_no_pattern_is_refused(sparsity, pattern, said):
    with pytest.raises(InputError, match=said):
        read_pattern(sparsity, pattern)


def test_n_of_m_keeps_n():
    """24:32 keeps three quarters, as the field says; it does not zero them."""
    score = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    assert OfEvery(24, 32).keep(score, score).sum() == 3 * 2 * 24


def test_a_mask_that_breaks_its_pattern_is_refused():
    pattern, order = OfEvery(2, 4), torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    weight = torch.tensor([[1.0, 1, 0, 0, 0, 0, 1, 1]])
    pattern.check_followed(weight, None, "a test")
    pattern.check_followed(weight, order, "a test")
    weight[0, 2] = 1.0
    said = "group 0 of row 0 holds 3 weights that are not zero, expected at most 2"
    for one in (None, order):
        with pytest.raises(CheckpointError, match=said):
            pattern.check_followed(weight, one, "a test")
    with pytest.raises(InputError, match="no multiple of 4"):
        pattern.check_followed(weight[:, :6], None, "a test")
