"""Parts of packed matrices as vLLM hands them over: gathered, checked, and never half of one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from leanmoe.errors import CheckpointError
from leanmoe.sparse.packing import pack, unpack
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_runtime.sparse.arrivals import Arrivals

ORDERED = SparseFormat(keep=16, input_orders=True)
ROWS, COLUMNS = 4, 64


def parts(projection: str = "w1") -> dict[str, torch.Tensor]:
    words = np.arange(1, ROWS * COLUMNS + 1, dtype=np.uint16).reshape(ROWS, COLUMNS)
    packed = pack(np.where(np.arange(COLUMNS) % 2, words, 0).astype(np.uint16), 16, "w")
    found = {
        ".weight_values": torch.from_numpy(packed.values_RV.view(np.int16)).view(torch.bfloat16),
        ".weight_mask": torch.from_numpy(packed.mask_RB.copy()),
    }
    order = torch.arange(COLUMNS - 1, -1, -1, dtype=torch.int32)
    return found if projection == "w2" else {**found, ".weight_input_order": order}


def arrivals(how: SparseFormat = ORDERED) -> tuple[Arrivals, list]:
    came: list = []
    put = lambda place, arrived: came.append((place, arrived.packed, arrived.order))  # noqa: E731
    return Arrivals(how, torch.bfloat16, "layer 3", put), came


def test_a_matrix_is_put_once_all_its_parts_are_here_in_any_order():
    waiting, came = arrivals()
    for projection in ("w1", "w2", "w3"):
        for end, tensor in reversed(parts(projection).items()):
            assert all(place != (0, projection) for place, *_ in came)
            waiting.take((0, projection), end, tensor)
    assert [place for place, *_ in came] == [(0, "w1"), (0, "w2"), (0, "w3")]
    assert came[0][2] is not None and came[1][2] is None
    waiting.check_whole(1)


def test_what_did_not_come_is_named():
    waiting, _ = arrivals()
    waiting.take((0, "w1"), ".weight_values", parts()[".weight_values"])
    with pytest.raises(CheckpointError, match="expert 0 of layer 3, w1 was not found"):
        waiting.check_whole(1)


@pytest.mark.parametrize("value", [COLUMNS, -1, 5])
def test_an_order_that_points_outside_or_twice_never_reaches_the_kernel(value):
    waiting, came = arrivals()
    held = parts()
    held[".weight_input_order"][0] = value
    with pytest.raises(CheckpointError, match="does not name each of 64 columns once"):
        for end, tensor in held.items():
            waiting.take((0, "w1"), end, tensor)
    assert not came


@pytest.mark.parametrize("first", ["w1", "w3"])
def test_an_expert_of_two_orders_never_reaches_the_kernel_whole(first):
    """One order brings inputs to both its matrices; a dense one's is that of the source."""
    second = {"w1": "w3", "w3": "w1"}[first]
    other = {**parts(), ".weight_input_order": torch.arange(COLUMNS, dtype=torch.int32)}
    dense = {".weight": torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16)}
    for held in (other, dense):
        waiting, came = arrivals()
        for end, tensor in parts().items():
            waiting.take((0, first), end, tensor)
        with pytest.raises(CheckpointError, match="expert 0 of layer 3: the input orders of"):
            for end, tensor in held.items():
                waiting.take((0, second), end, tensor)
        assert [place for place, *_ in came] == [(0, first)]


def test_a_mask_of_other_values_never_reaches_the_kernel():
    waiting, came = arrivals()
    held = parts()
    held[".weight_mask"][2, 1] = 0
    with pytest.raises(CheckpointError, match="values and bitmask disagree"):
        for end, tensor in held.items():
            waiting.take((0, "w1"), end, tensor)
    assert not came


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.float32])
@pytest.mark.parametrize("end", [".weight_values", ".weight_overflow_values"])
def test_packed_numbers_of_another_type_are_not_converted(end, dtype):
    """What a header calls integers or another half precision has the bits of other numbers."""
    held = parts("w2")
    none = {"rows": torch.zeros(ROWS + 1, dtype=torch.int32), "columns": torch.zeros(0).short()}
    held |= {f".weight_overflow_{name}": tensor for name, tensor in none.items()}
    held[".weight_overflow_values"] = torch.zeros(0, dtype=torch.bfloat16)
    waiting, came = arrivals(SparseFormat(keep=16, layout="overflow"))
    for name, tensor in held.items():
        waiting.take((0, "w2"), name, tensor)
    assert len(came) == 1
    held[end] = held[end].to(dtype)
    with pytest.raises(CheckpointError, match=f"holds {dtype}, expected torch.bfloat16 by config"):
        for name, tensor in held.items():
            waiting.take((1, "w2"), name, tensor)
    assert len(came) == 1


NOT_TOLD = {
    "an order": (SparseFormat(keep=16), "w1", ".weight_input_order"),
    "an order of a down projection": (ORDERED, "w2", ".weight_input_order"),
    "indices": (SparseFormat(keep=16), "w2", ".weight_indices"),
    "a mask": (SparseFormat(keep=16, layout="indices"), "w2", ".weight_mask"),
    "overflow": (ORDERED, "w1", ".weight_overflow_rows"),
    "scales": (ORDERED, "w1", ".weight_scale_inv"),
}


@pytest.mark.parametrize("what", NOT_TOLD)
def test_parts_that_the_config_says_nothing_of_are_refused(what):
    how, projection, end = NOT_TOLD[what]
    waiting, _ = arrivals(how)
    said = f"expert 5 of layer 3, {projection} holds {end[1:]}, which config.json says nothing of"
    with pytest.raises(CheckpointError, match=said):
        waiting.take((5, projection), end, torch.zeros(1))


def test_a_matrix_that_comes_packed_and_dense_is_refused():
    waiting, came = arrivals()
    for end, tensor in parts("w2").items():
        waiting.take((0, "w2"), end, tensor)
    with pytest.raises(CheckpointError, match="w2 stands in the checkpoint twice"):
        waiting.take((0, "w2"), ".weight", torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16))
    assert len(came) == 1


FLOAT8 = SparseFormat(keep=16, dtype="float8_e4m3fn", inner={"weight_block_size": [2, 32]})


def float8_parts() -> dict[str, torch.Tensor]:
    codes = np.where(np.arange(COLUMNS) % 2, 0x38, 0).astype(np.uint8)
    packed = pack(np.tile(codes, (ROWS, 1)), 16, "w")
    return {
        ".weight_values": torch.from_numpy(packed.values_RV).view(torch.float8_e4m3fn),
        ".weight_mask": torch.from_numpy(packed.mask_RB.copy()),
        ".weight_scale_inv": torch.full((2, 2), 0.5, dtype=torch.bfloat16),
    }


def float8_arrivals() -> tuple[Arrivals, list]:
    came: list = []
    put = lambda place, arrived: came.append(arrived)  # noqa: E731
    return Arrivals(FLOAT8, torch.float8_e4m3fn, "layer 3", put), came


def test_a_float8_matrix_waits_for_its_scales_packed_or_dense():
    waiting, came = float8_arrivals()
    held = float8_parts()
    for end in sorted(held):
        assert not came
        waiting.take((0, "w1"), end, held[end])
    dense = torch.zeros(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    waiting.take((1, "w1"), ".weight", dense)
    assert len(came) == 1
    waiting.take((1, "w1"), ".weight_scale_inv", held[".weight_scale_inv"])
    assert [one.scale_RC.tolist() for one in came] == [[[0.5, 0.5], [0.5, 0.5]]] * 2


WRONG_FLOAT8 = {
    "scales of another size": (".weight_scale_inv", torch.ones(1, 2), "scales are .* expected"),
    "scales that are none": (".weight_scale_inv", torch.full((2, 2), torch.nan), "finite numbers"),
    "codes that are none": (
        ".weight_values",
        torch.full((ROWS, 32), 0xFF, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "codes that are no numbers",
    ),
    "another type": (".weight_values", torch.ones(ROWS, 32), r"holds torch\.float32, expected"),
}


@pytest.mark.parametrize("wrong", WRONG_FLOAT8)
def test_float8_that_is_damaged_never_reaches_the_kernel(wrong):
    waiting, came = float8_arrivals()
    end, tensor, sentence = WRONG_FLOAT8[wrong]
    with pytest.raises(CheckpointError, match=sentence):
        for name, part in {**float8_parts(), end: tensor}.items():
            waiting.take((0, "w1"), name, part)
    assert not came


def test_whatever_bytes_and_sizes_of_float8_change_what_arrives_is_whole():
    """What the kernel reads by: masks of so many bits, scales for every block, listed columns."""
    generator, came, refused = random.Random(0), [], 0
    how = FLOAT8.model_copy(update={"keep": 8, "layout": "overflow"})
    whole = overflowing_parts()
    for _ in range(10_000):
        held = {end: tensor.clone() for end, tensor in whole.items()}
        end = generator.choice([*held])
        held[end] = changed(held[end], generator)
        waiting = Arrivals(how, torch.float8_e4m3fn, "layer 3", lambda _, one: came.append(one))
        try:
            for name, tensor in held.items():
                waiting.take((0, "w1"), name, tensor)
        except CheckpointError:
            refused += 1
    assert len(came) + refused == 10_000
    assert min(len(came), refused) > 300, refused
    for one in came:
        unpack(one.packed, 8, "w")
        assert one.scale_RC.shape == (2, 2)
        assert np.isfinite(one.scale_RC).all()
        assert one.packed.mask_RB.shape == (ROWS, COLUMNS // 8)


def overflowing_parts() -> dict[str, torch.Tensor]:
    codes = np.where(np.arange(COLUMNS) % 2, 0x38, 0).astype(np.uint8)
    packed = pack(np.tile(codes, (ROWS, 1)), 8, "w", overflow=True)
    float8 = lambda words: torch.from_numpy(words.copy()).view(torch.float8_e4m3fn)  # noqa: E731
    return {
        ".weight_values": float8(packed.values_RV),
        ".weight_mask": torch.from_numpy(packed.mask_RB.copy()),
        ".weight_overflow_rows": torch.from_numpy(packed.overflow.rows),
        ".weight_overflow_columns": torch.from_numpy(packed.overflow.columns_N),
        ".weight_overflow_values": float8(packed.overflow.values_N),
        ".weight_scale_inv": torch.ones(2, 2),
    }


def changed(tensor: torch.Tensor, generator: random.Random) -> torch.Tensor:
    """With another byte, another size, or as another type."""
    raw = tensor.contiguous().view(torch.uint8)
    kind = generator.randrange(8)
    if kind == 0:
        return tensor[: generator.randrange(len(tensor))]
    if kind == 1:
        return tensor.flatten()
    if kind == 2:
        return raw
    raw.view(-1)[generator.randrange(raw.numel())] = generator.randrange(256)
    return tensor
