"""The ideal ratio follows from the shape alone; ratios are paired."""

from dataclasses import replace

import pytest

from leanmoe_bench.engines.cases import Case, cases_for
from leanmoe_bench.engines.ideal import Step, bytes_read, ideal_ratio, operations
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import SHAPES

M = SHAPES["M"]


def test_shape_m_is_the_stated_size():
    parameters = (
        M.layers * (M.attention_parameters + M.experts * M.expert_parameters) + M.head_parameters
    )
    assert 2 * parameters == pytest.approx(4.4e9, rel=0.03)


def test_batch_one_at_median_betas_reads_1_28_times_less():
    assert ideal_ratio(M, Step(1, 1), 0.25).bytes_ratio == pytest.approx(1.28, abs=0.005)


def test_nothing_skipped_is_one_and_more_skipped_is_more():
    ideals = [ideal_ratio(M, Step(8, 8), rate) for rate in (0.0, 0.2, 0.4, 0.5)]
    assert ideals[0] == (1.0, 1.0)
    for ratios in zip(*ideals, strict=True):
        assert list(ratios) == sorted(ratios)


def test_the_ideal_is_the_resource_that_skipping_saves_most():
    many = ideal_ratio(M, Step(1024, 1), 0.25)
    assert many.bytes_ratio == pytest.approx(1.0)
    assert many.ratio == many.operations_ratio > 1.25


def test_many_rows_read_every_expert():
    everything = 2 * (
        M.layers * (M.attention_parameters + M.experts * M.expert_parameters) + M.head_parameters
    )
    assert bytes_read(M, Step(512, 512), M.top_k) == pytest.approx(everything)


def test_operations_count_kept_experts_per_row():
    one, two = (operations(M, Step(10, 0), kept) for kept in (1, 2))
    assert two - one == 10 * M.layers * M.expert_parameters


def test_a_ratio_is_the_median_of_pairs_with_its_spread():
    ratio = paired_ratio([2.0, 6.0, 9.0], [1.0, 2.0, 9.0])
    assert (ratio.middle, ratio.low, ratio.high) == (2.0, 1.0, 3.0)


def test_with_many_pairs_the_spread_leaves_outliers_out():
    ours = [1.0] * 19 + [50.0]
    assert paired_ratio(ours, [1.0] * 20).high == 1.0


def test_a_budget_bounds_the_bytes_down_to_every_token_s_top_expert():
    shape, step = SHAPES["F"], Step(32, 32)
    every, half = (bytes_read(shape, step, shape.top_k, budget) for budget in (None, 32))
    assert half < 0.6 * every
    many = Step(1024, 1)
    assert bytes_read(shape, many, shape.top_k, 32) == pytest.approx(
        bytes_read(shape, many, shape.top_k), rel=1e-3
    )


def test_packed_experts_are_read_in_fewer_bytes():
    step = Step(1, 1)
    case = Case("16:32", pattern="16:32")
    experts_only = replace(M, heads=0, kv_heads=0, vocabulary=0)
    found = ideal_ratio(experts_only, step, 0.0, case)
    assert found.bytes_ratio == pytest.approx(1 / 0.5625, rel=1e-3)
    assert found.operations_ratio == 1


def test_the_cases_fit_their_shape():
    names = [case.name for case in cases_for(M.experts, M.top_k)]
    packed = ["16:32", "keep4+16:32+median"]
    assert names == ["level0", "median", "top1", "keep4+median", *packed]
    fine = [case.name for case in cases_for(64, 8)]
    assert "union32" in fine and "skip40" in fine and "median" not in fine


def test_a_shape_counts_its_experts_under_its_own_family_s_key():
    counted = {name: shape.config() for name, shape in SHAPES.items()}
    assert counted["F"]["num_experts"] == 64 and "num_local_experts" not in counted["F"]
    assert counted["M"]["num_local_experts"] == 8 and "num_experts" not in counted["M"]
    assert SHAPES["F"].tensor_name("x.block_sparse_moe.experts.1.w2.weight") == (
        "x.mlp.experts.1.down_proj.weight"
    )
