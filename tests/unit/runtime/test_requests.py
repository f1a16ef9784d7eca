"""Which row of the beta tables a step's tokens use follows from what is scheduled, in order."""

from types import SimpleNamespace

import numpy as np
import pytest

from leanmoe.errors import LevelError
from leanmoe.messages import LevelTable, Phases
from leanmoe.policy import RequestLevel
from leanmoe_runtime.requests import Batch, RequestRows
from leanmoe_runtime.state import EXACT_ROW, MANDATORY, LayerState, SkipState

KEY = "key-of-this-server"


def state_of(layers: int = 2) -> SkipState:
    state = SkipState()
    for layer in range(layers):
        state.add(LayerState(layer=layer, top_k=2, renormalize=True))
    state.set_levels(LevelTable(key=KEY, betas={40: {0: 0.4, 1: 0.3}, 100: {0: 1.0, 1: 1.0}}))
    return state


def new(name: str, **extra):
    return SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=extra or None))


def step(rows: RequestRows, new_requests=(), finished=(), order=(), tokens=(), **lengths):
    scheduled = SimpleNamespace(scheduled_new_reqs=new_requests, finished_req_ids=set(finished))
    tokens_R = np.array(tokens, dtype=np.int32)
    computed_R = np.array(lengths.get("computed", 0 * tokens_R), dtype=np.int32)
    prompt_R = np.array(lengths.get("prompt", tokens_R), dtype=np.int32)
    alive = lengths.get("alive", order)
    rows.begin_step(scheduled, Batch(order, tokens_R, computed_R, prompt_R, alive))


def test_rows_lie_in_the_order_of_the_batch():
    state = state_of()
    rows = RequestRows(state)
    step(rows, [new("a"), new("b", **{KEY: 40})], order=["b", "a"], tokens=[3, 2])
    assert state.token_rows_T.tolist() == [41, 41, 41, 0, 0]
    step(rows, [new("c", **{KEY: 100})], order=["a", "b", "c"], tokens=[1, 1, 2])
    assert state.token_rows_T.tolist() == [0, 41, 101, 101]


def test_a_step_without_such_a_request_has_no_rows():
    state = state_of()
    rows = RequestRows(state)
    step(rows, [new("a"), new("b", **{KEY: 40})], order=["a"], tokens=[5])
    assert state.token_rows_T is None
    step(rows, order=["a", "b"], tokens=[1, 1])
    assert state.token_rows_T is not None
    step(rows, finished=["b"], order=["a"], tokens=[1])
    assert state.token_rows_T is None


def test_who_ended_in_a_step_without_tokens_is_forgotten():
    state = state_of()
    rows = RequestRows(state)
    step(rows, [new("a", **{KEY: 40}), new("b", **{KEY: 40})], order=["a", "b"], tokens=[1, 1])
    step(rows, order=["c"], tokens=[1], alive=["b", "c"])
    assert list(rows._row_of) == ["b"]


def test_a_name_used_again_carries_nothing_over():
    state = state_of()
    rows = RequestRows(state)
    step(rows, [new("a", **{KEY: 40})], order=["a"], tokens=[1])
    step(rows, [new("a")], finished=["a"], order=["a"], tokens=[1])
    assert state.token_rows_T is None


def test_another_key_and_a_number_outside_the_table_cannot_do_harm():
    state = state_of()
    rows = RequestRows(state)
    step(rows, [new("a", leanmoe=40), new("b", **{KEY: 10**6})], order=["a", "b"], tokens=[1, 1])
    assert state.token_rows_T.tolist() == [0, 101 | MANDATORY]


def test_an_exact_request_and_one_that_asks_for_it_are_out_of_reach_of_a_budget():
    state = state_of()
    rows = RequestRows(state)
    asked = [RequestLevel(0), RequestLevel(40, deterministic=True), RequestLevel(40)]
    codes = [one.pack() for one in asked]
    wanted = [new(name, **{KEY: code}) for name, code in zip("abc", codes, strict=True)]
    step(rows, wanted, order=["a", "b", "c"], tokens=[1, 1, 1])
    assert state.token_rows_T.tolist() == [1 | MANDATORY, 41 | MANDATORY, 41]


def test_where_only_decoding_skips_prompt_tokens_are_exact():
    state = state_of()
    state.phases = Phases.DECODE
    rows = RequestRows(state)
    step(rows, [new("b", **{KEY: 40})], order=["a", "b"], tokens=[2, 3], prompt=[4, 2])
    assert state.token_rows_T.tolist() == [EXACT_ROW] * 4 + [41]
    step(rows, order=["a", "b"], tokens=[3, 1], computed=[2, 3], prompt=[4, 2])
    assert state.token_rows_T.tolist() == [EXACT_ROW, EXACT_ROW, 0, 41]
    step(rows, finished=["b"], order=["a"], tokens=[1], computed=[5], prompt=[4])
    assert state.token_rows_T is None


def test_requests_without_sampling_parameters_use_the_engine_s_level():
    state = state_of()
    rows = RequestRows(state)
    pooling = SimpleNamespace(req_id="p", sampling_params=None)
    step(rows, [pooling, new("b", **{KEY: 40})], order=["p", "b"], tokens=[2, 1])
    assert state.token_rows_T.tolist() == [0, 0, 41]


def test_the_table_fills_the_rows_of_every_layer_or_of_none():
    state = state_of()
    assert [float(state.layers[layer].betas[41]) for layer in (0, 1)] == pytest.approx([0.4, 0.3])
    with pytest.raises(LevelError, match="none for layer 1 of the 2 MoE layers"):
        state.set_levels(LevelTable(key="other", betas={10: {0: 0.5}}))
    with pytest.raises(LevelError, match="101 hundredths"):
        state.set_levels(LevelTable(key="other", betas={101: dict.fromkeys(range(2), 0.5)}))
    assert state.request_key == KEY
