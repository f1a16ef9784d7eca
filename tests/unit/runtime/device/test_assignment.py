"""How the experts come by their blocks: from the routing launch, from a constant, or from stock."""

import pytest
import torch

from leanmoe_runtime.device import assignment
from leanmoe_runtime.device.assignment import with_blocks
from leanmoe_runtime.device.blocks import attach_blocks, empty_blocks, may_lay_out
from leanmoe_runtime.device.tiles import finer

CONFIG = {"BLOCK_SIZE_M": 16}


class Stock:
    def __init__(self):
        self.asked = 0

    def __call__(self, topk_ids, config, tokens, top_k, experts, expert_map, **named):
        self.asked += 1
        return "sorted", "experts", "count"


@pytest.fixture
def stock(monkeypatch):
    monkeypatch.setattr(assignment, "_NUMBERS", {})
    return Stock()


def prepare(stock, ids, experts, *, expert_map=None, config=CONFIG, **named):
    tokens, top_k = ids.shape
    return with_blocks(stock)(ids, config, tokens, top_k, experts, expert_map, **named)


def test_blocks_that_came_with_the_ids_are_taken(stock):
    ids = torch.zeros(4, 2, dtype=torch.int32)
    blocks = empty_blocks(4, 2, 16, ids.device)
    attach_blocks(ids, blocks)
    assert prepare(stock, ids, 8) == (blocks.sorted_N, blocks.experts, blocks.n_sorted)
    assert stock.asked == 0


@pytest.mark.parametrize(
    "otherwise", [{"config": {"BLOCK_SIZE_M": 32}}, {"expert_map": torch.zeros(8)}]
)
def test_blocks_of_another_size_or_under_a_map_are_stock_s(stock, otherwise):
    ids = torch.zeros(4, 2, dtype=torch.int32)
    attach_blocks(ids, empty_blocks(4, 2, 16, ids.device))
    assert prepare(stock, ids, 8, **otherwise)[0] == "sorted"


def test_few_assignments_take_a_number_that_is_made_once(stock):
    ids = torch.zeros(2, 2, dtype=torch.int32)
    found = [prepare(stock, ids, 16) for _ in range(2)]
    assert found[0][0] is None and found[0][1].tolist() == [0] * 4
    assert found[0][2].tolist() == [64] and found[1][2] is found[0][2]
    assert stock.asked == 0


@pytest.mark.parametrize(
    ("experts", "named"),
    [(15, {}), (16, {"use_int4_w4a16": True}), (16, {"weights_host_resident": True})],
)
def test_what_stock_aligns_stock_still_aligns(stock, experts, named):
    prepare(stock, torch.zeros(2, 2, dtype=torch.int32), experts, **named)
    assert stock.asked == 1


def test_a_number_is_not_made_of_a_graph_s_memory(stock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert assignment._number(16, torch.device("cuda")) is None
    assert assignment._NUMBERS == {}


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "rows", "may"),
    [
        (8, 8, 128, 16, True),
        (9, 8, 128, 16, False),
        (16, 2, 8, 16, True),
        (17, 2, 8, 16, False),
        (1, 8, 512, 16, False),
    ],
)
def test_one_program_lays_out_few_assignments_of_one_block_each(tokens, top_k, experts, rows, may):
    assert may_lay_out(tokens, top_k, experts, rows) is may


H200 = 132


@pytest.mark.parametrize(
    ("width", "columns", "tokens", "top_k", "expected"),
    [
        (128, 4096, 1, 2, 32),  # Mixtral's second product: 32 programs would be left of 64
        (128, 28672, 1, 2, 128),  # its first: 224 are left
        (64, 1536, 1, 8, 32),  # Qwen3-30B-A3B's first
        (64, 2048, 1, 8, 32),
        (64, 1536, 4, 8, 64),  # narrower ones would not all run at once
        (128, 4096, 8, 2, 128),
        (32, 64, 1, 1, 32),
    ],
)
def test_tiles_are_halved_until_one_expert_fills_the_card(width, columns, tokens, top_k, expected):
    config = {"BLOCK_SIZE_N": width, "BLOCK_SIZE_M": 16, "num_stages": 5}
    found = finer(config, columns, tokens * top_k, tokens, H200)
    assert found == {**config, "BLOCK_SIZE_N": expected}
    assert config["BLOCK_SIZE_N"] == width


def test_each_warp_keeps_columns_of_its_own():
    config = {"BLOCK_SIZE_N": 128, "BLOCK_SIZE_M": 16, "num_warps": 8}
    assert finer(config, 4096, 2, 1, H200)["BLOCK_SIZE_N"] == 64
