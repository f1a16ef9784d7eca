"""``input_orders.leanmoe``: what is written is read, what is no order is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from leanmoe.errors import CheckpointError
from leanmoe.families.granitemoe import GRANITEMOE
from leanmoe.families.mixtral import MIXTRAL
from leanmoe.input_orders import (
    INPUT_ORDERS_NAME,
    order_name,
    read_input_orders,
    write_input_orders,
)

NAME = "model.layers.0.block_sparse_moe.experts.3.input_order"


def test_an_order_is_named_by_its_expert():
    assert order_name(MIXTRAL, 0, 3) == NAME
    with pytest.raises(ValueError, match="no tensor of its own"):
        order_name(GRANITEMOE, 0, 3)


@settings(max_examples=30)
@given(orders=st.lists(st.permutations(range(8)), max_size=4))
def test_what_is_written_is_read(orders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    named = {f"{NAME}{i}": np.array(order, np.int32) for i, order in enumerate(orders)}
    write_input_orders(folder, named, 8)
    found = read_input_orders(folder, 8)
    assert found.keys() == named.keys()
    assert all(np.array_equal(found[name], named[name]) for name in named)


def test_without_the_file_there_is_no_order(tmp_path):
    assert read_input_orders(tmp_path, 8) == {}


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (np.array([0, 1, 2, 2], np.int32), "a column more than once"),
        (np.array([0, 1, 2, 4], np.int32), "a column more than once or out of range"),
        (np.arange(3, dtype=np.int32), r"int32 of shape \[3\], expected int32 \[4\]"),
        (np.arange(4, dtype=np.int64), "int64 of shape"),
        (np.zeros((2, 2), np.int32), r"shape \[2, 2\]"),
    ],
)
def test_what_is_no_order_is_refused(order, said, tmp_path):
    (tmp_path / INPUT_ORDERS_NAME).write_bytes(save({NAME: order}))
    with pytest.raises(CheckpointError, match=said) as error:
        read_input_orders(tmp_path, 4)
    assert NAME in str(error.value) and str(tmp_path) in str(error.value)
    with pytest.raises(CheckpointError, match=said):
        write_input_orders(tmp_path, {NAME: order}, 4)


@pytest.mark.parametrize("content", [b"", b"no orders", b"\xff" * 40])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / INPUT_ORDERS_NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match="no readable file of orders"):
        read_input_orders(tmp_path, 4)
