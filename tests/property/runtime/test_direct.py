"""The operator that spares Python counts and computes what the one in Python does."""

import gc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.forward_context import override_forward_context
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPModular,
)

from leanmoe.messages import UnionBudget, UnionMode
from leanmoe_runtime import experts
from leanmoe_runtime.engine import Engine
from leanmoe_runtime.experts import LeanRoutedExperts, register_operator
from leanmoe_runtime.state import LayerState

E, K, D, F, LAYERS = 8, 3, 32, 32, 3


def bare(index: int, engine: Engine) -> LeanRoutedExperts:
    """Experts that were built and loaded, without the engine around them."""
    layer = LeanRoutedExperts.__new__(LeanRoutedExperts)
    torch.nn.Module.__init__(layer)
    random = torch.Generator().manual_seed(index)
    for name, size in {"w13_weight": (E, 2 * F, D), "w2_weight": (E, D, F)}.items():
        drawn = torch.randn(size, generator=random).to(torch.bfloat16)
        packed = cpu_prepack_moe_weight(drawn, "vec")
        setattr(layer, name, torch.nn.Parameter(packed, requires_grad=False))
    fused = CPUUnquantizedExperts.__new__(CPUUnquantizedExperts)
    fused._use_zentorch, fused.quant_config = False, SimpleNamespace(w1_bias=None, w2_bias=None)
    prepare = MoEPrepareAndFinalizeNoDPEPModular.__new__(MoEPrepareAndFinalizeNoDPEPModular)
    kernel = SimpleNamespace(fused_experts=fused, prepare_finalize=prepare)
    layer.__dict__["quant_method"] = SimpleNamespace(moe_kernel=kernel)
    layer.apply_router_weight_on_input, layer.activation = False, SimpleNamespace(value="silu")
    layer._logits = layer._kernel = None
    layer.engine, layer.of_draft = engine, False
    layer._slot = experts._slot_of(layer)
    layer._direct = experts._direct()
    assert layer._direct is not None
    layer._direct.add(layer._slot)
    layer.attach(state_of(index), condensed=False)
    return layer


def state_of(index: int) -> LayerState:
    return LayerState(layer=index, top_k=K, renormalize=False, n_experts=E)


@pytest.fixture(scope="module")
def layers():
    return layers_of(Engine())


@pytest.fixture(scope="module")
def others():
    """Another model in the same process."""
    return layers_of(Engine())


def layers_of(engine):
    register_operator()
    return [bare(index, engine) for index in range(LAYERS)]


def fresh(layers, betas):
    for index, (layer, beta) in enumerate(zip(layers, betas, strict=True)):
        layer.attach(state_of(index), condensed=False)
        layer.skip_state.set_beta(beta)


def routed(tokens: int, seed: int, wrong: bool):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, D, generator=random).to(torch.bfloat16)
    weights, ids = torch.rand(tokens, E, generator=random).topk(K)
    if wrong:
        weights[-1, 0] = float("nan")
    return x, weights, ids.int()


def one_pass(layers, steps, *, direct: bool, traffic: bool = True):
    """What every layer gives in one pass."""
    with (
        torch.inference_mode(),
        override_forward_context(SimpleNamespace(attn_metadata={} if traffic else None)),
    ):
        return [
            layer.forward_modular(*step)
            if direct
            else torch.ops.leanmoe.experts(*step, layer._slot)
            for layer, step in zip(layers, steps, strict=True)
        ]


def counts(layers):
    return [layer.skip_state.counts() for layer in layers]


def in_python(layers):
    return [layer.skip_state.calls for layer in layers]


BETAS = st.lists(st.sampled_from([0.0, 0.7]), min_size=LAYERS, max_size=LAYERS)
PASSES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 99), st.booleans(), st.booleans()), max_size=4
)


@settings(max_examples=60)
@given(BETAS, PASSES)
def test_outputs_are_equal_to_the_bit_and_counters_to_the_last(layers, betas, passes):
    found = {}
    for direct in (False, True):
        fresh(layers, betas)
        outputs = []
        for tokens, seed, wrong, traffic in passes:
            steps = [routed(tokens, seed + index, wrong) for index in range(LAYERS)]
            outputs += one_pass(layers, steps, direct=direct, traffic=traffic)
        found[direct] = outputs, counts(layers)
    for plain, ours in zip(found[False][0], found[True][0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)
    assert found[True][1] == found[False][1]


def passing(layers, **how):
    """How often each layer ran in Python during one pass."""
    before = in_python(layers)
    one_pass(layers, [routed(4, index, False) for index in range(LAYERS)], direct=True, **how)
    return [new - old for old, new in zip(before, in_python(layers), strict=True)]


def warmed_up(layers):
    fresh(layers, [0.0] * LAYERS)
    passing(layers, traffic=False)


def test_every_layer_s_first_call_is_python_s_which_notes_that_it_ran(layers):
    fresh(layers, [0.0] * LAYERS)
    assert passing(layers) == [1, 1, 1]
    assert passing(layers) == [1, 0, 0]


def test_only_a_pass_s_first_layer_runs_in_python_at_level_zero(layers):
    warmed_up(layers)
    assert passing(layers) == passing(layers) == [1, 0, 0]


def test_a_layer_that_may_skip_runs_in_python(layers):
    warmed_up(layers)
    layers[1].skip_state.set_beta(0.5)
    assert passing(layers) == [1, 1, 0]
    layers[1].skip_state.set_beta(0.0)
    assert passing(layers) == [1, 0, 0]


def test_a_run_that_is_no_traffic_is_not_counted(layers):
    warmed_up(layers)
    passing(layers)
    before = counts(layers)
    assert passing(layers, traffic=False) == [1, 1, 1]
    assert counts(layers) == before


def test_levels_of_requests_and_budgets_are_seen_from_the_next_pass_on(layers, monkeypatch):
    warmed_up(layers)
    assert passing(layers) == [1, 0, 0]
    state = layers[0].engine.state
    with monkeypatch.context() as patch:
        patch.setattr(state, "token_rows_T", torch.zeros(4, dtype=torch.int32))
        assert passing(layers) == [1, 1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(state, "union", UnionBudget(experts=2, mode=UnionMode.VANISH))
        assert passing(layers) == [1, 1, 1]
    assert passing(layers) == [1, 0, 0]


def test_each_model_s_passes_follow_what_its_own_first_layer_found(layers, others, monkeypatch):
    warmed_up(layers)
    warmed_up(others)
    with monkeypatch.context() as patch:
        state = others[0].engine.state
        patch.setattr(state, "token_rows_T", torch.zeros(4, dtype=torch.int32))
        # The other model is built later, so its layers' numbers go on where these end.
        assert passing(layers) == [1, 0, 0]
        assert passing(others) == [1, 1, 1]
        assert passing(layers) == [1, 0, 0]
    assert passing(others) == [1, 0, 0]
    before = counts(layers)
    assert passing(others, traffic=False) == [1, 1, 1]
    assert counts(layers) == before and passing(layers) == [1, 0, 0]


def test_layers_of_two_models_may_take_turns(layers, others):
    warmed_up(layers)
    warmed_up(others)
    others[1].skip_state.set_beta(0.7)
    both = [layer for pair in zip(layers, others, strict=True) for layer in pair]
    before = in_python(both)
    one_pass(both, [routed(4, index, False) for index in range(2 * LAYERS)], direct=True)
    ran = [new - old for old, new in zip(before, in_python(both), strict=True)]
    assert ran == [1, 1, 0, 1, 0, 0]
    assert {layer.skip_state.counters.tokens for layer in both} == {4}
    assert [layer.skip_state.counters.skipped > 0 for layer in others] == [False, True, False]


def test_a_layer_that_is_gone_leaves_nothing_behind(layers):
    engine = Engine()
    slots = [layer._slot for layer in layers_of(engine)]
    gc.collect()
    assert not any(slot in experts._LAYERS for slot in slots)
    assert passing(layers)[0] == 1


def test_weights_of_another_width_or_layout_are_left_to_python(layers):
    warmed_up(layers)
    x, weights, ids = routed(4, 0, False)
    steps = [(x, weights, ids), (x, weights.t().contiguous().t(), ids), (x, weights, ids)]
    before = in_python(layers)
    outputs = one_pass(layers, steps, direct=True)
    assert [new - old for old, new in zip(before, in_python(layers), strict=True)] == [1, 1, 0]
    assert outputs[1].shape == x.shape
    assert [layer.skip_state.counters.tokens for layer in layers] == [4, 4, 4]
