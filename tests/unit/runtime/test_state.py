"""A policy applies to every layer or to none; layer numbers come from names."""

import pytest
import torch
from pydantic import ValidationError

from leanmoe.errors import LevelError, RuntimeSeamError
from leanmoe.messages import ExpertFactors, LevelTable, PolicyUpdate
from leanmoe.skip_rule import SkipRule
from leanmoe_runtime.device.table import MASS_ONE, DeviceTable
from leanmoe_runtime.layers import layer_index
from leanmoe_runtime.state import LayerState, SkipState


def state_of(*layers: int) -> SkipState:
    state = SkipState()
    for layer in layers:
        state.add(LayerState(layer=layer, top_k=2, renormalize=True))
    return state


def update(**betas: float) -> PolicyUpdate:
    return PolicyUpdate(level=0.5, betas={int(k[1:]): v for k, v in betas.items()}, version=7)


def test_a_policy_sets_host_and_device_betas():
    state = state_of(1, 3)
    for layer in state.layers.values():
        layer.device = DeviceTable.make(layer.betas, 8, "cpu")
    state.apply(update(l1=0.25, l3=0.5))
    assert [state.layers[n].beta for n in (1, 3)] == [0.25, 0.5]
    assert [float(state.layers[n].device.betas_R[0]) for n in (1, 3)] == [0.25, 0.5]
    assert (state.level, state.version) == (0.5, 7)


@pytest.mark.parametrize("betas", [{"l1": 0.5}, {"l1": 0.5, "l2": 0.5}, {}])
def test_a_policy_that_leaves_a_layer_out_changes_nothing(betas):
    state = state_of(1, 3)
    with pytest.raises(LevelError, match="measure the curve"):
        state.apply(update(**betas))
    assert state.version == 0 and all(layer.beta == 0.0 for layer in state.layers.values())


def test_a_stage_of_a_pipeline_takes_the_betas_of_its_own_layers():
    state = state_of(2, 3)
    state.apply(update(l0=0.1, l1=0.2, l2=0.3, l3=0.4))
    assert {n: layer.beta for n, layer in state.layers.items()} == {2: 0.3, 3: 0.4}


def test_two_layers_of_one_number_are_refused():
    with pytest.raises(RuntimeSeamError, match=r"model are number 3, so one would never skip"):
        state_of(3, 3)


def test_thresholds_are_float32_whatever_dtype_a_model_is_built_in():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        state = state_of(0)
    finally:
        torch.set_default_dtype(before)
    state.apply(update(l0=0.123456))
    table = DeviceTable.make(state.layers[0].betas, 8, "cpu")
    assert state.layers[0].betas.dtype == table.betas_R.dtype == torch.float32
    assert float(state.layers[0].betas[0]) == pytest.approx(0.123456, rel=1e-6)


def test_a_beta_above_one_is_clamped_so_that_the_largest_survives():
    state = state_of(0)
    state.apply(update(l0=1.5))
    assert state.layers[0].beta == 1.0


def test_a_rule_and_its_beta_are_one_number_of_the_table_and_factors_reach_the_device():
    state = SkipState()
    layer = state.add(LayerState(layer=0, top_k=4, renormalize=True, n_experts=6))
    layer.device = DeviceTable.make(layer.betas, 6, "cpu")
    state.set_factors(ExpertFactors(factors={0: [1, 2, 3, 4, 5, 6]}))
    betas = {code: {0: 0.5} for code in (10, 20, 30)}
    rules = {10: SkipRule.RATIO, 20: SkipRule.NORM, 30: SkipRule.TOPK}
    state.set_levels(LevelTable(key="key", betas=betas, rules=rules))
    assert layer.device.betas_R[[11, 21, 31]].tolist() == [0.5, -0.5, 3.0]
    assert layer.device.factors_E.tolist() == layer.factors.tolist() == [1, 2, 3, 4, 5, 6]
    state.apply(PolicyUpdate(level=0.5, rule=SkipRule.NORM, betas={0: 0.25}, version=1))
    assert (state.rule, layer.beta, state.skips) == (SkipRule.NORM, -0.25, True)


@pytest.mark.parametrize("factors", [{0: [1.0] * 5}, {0: [1.0] * 7}, {1: [1.0] * 6}, {}])
def test_factors_of_other_layers_or_experts_are_refused_whole(factors):
    state = SkipState()
    for layer in (0, 1):
        state.add(LayerState(layer=layer, top_k=2, renormalize=True, n_experts=6))
    with pytest.raises(LevelError, match="measure the curve"):
        state.set_factors(ExpertFactors(factors=factors))
    assert not state.has_factors and state.layers[0].factors.tolist() == [1.0] * 6


def test_copies_of_experts_have_no_factors_of_their_own():
    state = SkipState()
    layer = state.add(LayerState(layer=0, top_k=2, renormalize=True, n_experts=6, n_routed=4))
    state.set_factors(ExpertFactors(factors={0: [2.0] * 4}))
    assert layer.factors.tolist() == [2.0] * 4 + [1.0] * 2


def test_the_norm_rule_without_factors_is_refused_and_changes_nothing():
    state = state_of(0)
    norm = {"betas": {0: 0.5}, "rule": SkipRule.NORM}
    with pytest.raises(LevelError, match="no factors"):
        state.apply(PolicyUpdate(level=0.5, version=1, **norm))
    with pytest.raises(LevelError, match="no factors"):
        state.set_levels(LevelTable(key="k", betas={5: {0: 0.5}}, rules={5: SkipRule.NORM}))
    assert (state.version, state.request_key) == (0, None)
    assert not state.layers[0].betas.any()


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e-40])
def test_a_factor_that_is_no_positive_number_is_no_message(factor):
    with pytest.raises(ValidationError):
        ExpertFactors(factors={0: [1.0, factor]})


def test_counts_add_host_and_device_and_routed_is_tokens_times_top_k():
    layer = LayerState(layer=2, top_k=2, renormalize=True)
    layer.counters.tokens, layer.counters.skipped = 10, 3
    layer.device = DeviceTable.make(layer.betas, 8, "cpu")
    layer.device.counts.add_(torch.tensor([5, 5, 1, 2, 6, 4, MASS_ONE // 2, 0]))
    layer.device.seen_W.fill_(4)  # one expert that no launch counted yet
    counts = layer.counts()
    assert (counts.tokens, counts.routed, counts.skipped) == (15, 30, 8)
    assert (counts.nonfinite, counts.steps, counts.distinct_experts) == (1, 2, 7)
    assert counts.substituted == 4
    assert counts.skipped_weight == 0.5


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.layers.12.block_sparse_moe.experts", 12),
        ("language_model.model.layers.0.mlp.experts", 0),
        ("model.experts", -1),
    ],
)
def test_the_decoder_layer_is_read_from_the_name(name, index):
    assert layer_index(name) == index
