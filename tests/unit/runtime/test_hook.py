"""Both model runners fill the step's rows in the order of their own batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from leanmoe.messages import LevelTable, Phases
from leanmoe_runtime import hook
from leanmoe_runtime.device.alignment import request_rows_unavailable
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.engine import Engine, engine_of
from leanmoe_runtime.state import EXACT_ROW, LayerState

KEY = "key"


class FirstRunner:
    def __init__(self, order):
        zeros = np.zeros(len(order), dtype=np.int32)
        self.input_batch = SimpleNamespace(
            req_ids=order, num_computed_tokens_cpu=zeros, num_prompt_tokens=zeros
        )
        self.requests = dict.fromkeys(order)

    def _prepare_inputs(self, scheduler_output, num_scheduled_tokens):
        return "first", num_scheduled_tokens

    def _dummy_run(self, num_tokens, *args, **named):
        return num_tokens, args, named

    def capture_model(self):
        return "captured"


def laid_out_as(order, counts, computed=(0, 0), prompt=(0, 0)):
    return SimpleNamespace(
        req_ids=order,
        num_scheduled_tokens=counts,
        num_computed_prefill_tokens_np=tokens(*computed)[: len(order)],
        prefill_len_np=tokens(*prompt)[: len(order)],
        idx_mapping_np=tokens(1, 0)[: len(order)],
    )


class SecondRunner:
    req_states = SimpleNamespace(
        req_id_to_index={"a": 0, "b": 1}, prompt_len=SimpleNamespace(np=np.array([3, 2, 9]))
    )

    def prepare_inputs(self, scheduler_output, batch_req_state, batch_desc, num_active_loras):
        return "second", batch_desc, num_active_loras

    def _dummy_run(self, num_tokens):
        return num_tokens

    def capture_model(self, *, profile_only=False):
        return profile_only


@pytest.fixture
def watched(monkeypatch):
    """(state, step, first runner class, second runner class), hooked."""
    config = config_of_an_engine()
    first = type("First", (FirstRunner,), {"vllm_config": config})
    second = type("Second", (SecondRunner,), {"vllm_config": config})
    monkeypatch.setattr(hook, "model_runner_class", lambda: first)
    monkeypatch.setattr(hook, "second_model_runner_class", lambda: second)
    engine = with_one_layer(engine_of(config))
    engine.step = StepRows(8, "cpu")
    hook.watch_device_requests()
    return engine.state, engine.step, first, second


def config_of_an_engine():
    return SimpleNamespace(compilation_config=SimpleNamespace())


def with_one_layer(engine: Engine) -> Engine:
    engine.state.add(LayerState(layer=0, top_k=2, renormalize=True))
    engine.state.set_levels(LevelTable(key=KEY, betas={40: {0: 0.4}}))
    return engine


def scheduled(*levels):
    new = [
        SimpleNamespace(
            req_id=name, sampling_params=SimpleNamespace(extra_args=level and {KEY: level})
        )
        for name, level in levels
    ]
    return SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set())


def tokens(*counts):
    return np.array(counts, dtype=np.int32)


def test_the_first_runner_s_order_is_its_batch_s(watched):
    _, step, first, _ = watched
    runner = first(["b", "a"])
    answer = runner._prepare_inputs(scheduled(("a", None), ("b", 40)), tokens(2, 1))
    assert answer[0] == "first"
    assert step.rows_T.tolist() == [41, 41, 0, -1, -1, -1, -1, -1]


def test_the_second_runner_s_order_comes_with_its_state(watched):
    _, step, _, second = watched
    laid_out = laid_out_as(["a", "b"], tokens(1, 3))
    runner = second()
    answer = runner.prepare_inputs(scheduled(("a", None), ("b", 40)), laid_out, "desc", 7)
    assert answer == ("second", "desc", 7)
    assert step.rows_T.tolist() == [0, 41, 41, 41, -1, -1, -1, -1]


def test_steps_without_a_request_s_own_level_still_count_their_tokens(watched):
    state, step, _, second = watched
    laid_out = laid_out_as(["a"], tokens(3))
    second().prepare_inputs(scheduled(("a", None)), laid_out, None, 0)
    assert state.token_rows_T is None
    assert step.tokens == 3 and step.rows_T.tolist() == [0, 0, 0, -1, -1, -1, -1, -1]


def test_the_second_runner_knows_which_tokens_are_of_a_prompt(watched):
    state, step, _, second = watched
    state.phases = Phases.DECODE
    laid_out = laid_out_as(["a", "b"], tokens(2, 2), computed=(1, 5), prompt=(2, 3))
    second().prepare_inputs(scheduled(("a", None), ("b", 40)), laid_out, None, 0)
    assert step.rows_T.tolist() == [EXACT_ROW, 0, 41, 41, -1, -1, -1, -1]


def test_dummy_runs_and_captures_are_nobody_s(watched):
    _, step, first, second = watched
    for runner, dummy in ((first([]), "_dummy_run"), (second(), "_dummy_run")):
        step.begin(None, 4)
        assert getattr(runner, dummy)(5) in (5, (5, (), {}))
        assert step.rows_T.tolist() == [-1] * 8 and step.tokens == 0
        step.begin(None, 4)
        runner.capture_model()
        assert step.rows_T.tolist() == [-1] * 8


def test_requests_that_vllm_makes_up_at_its_start_are_nobody_s(watched):
    _, step, _, second = watched
    for name in ("_warmup_0_", "_v2_mixed_warmup_prefill_"):
        second().prepare_inputs(scheduled((name, None)), laid_out_as([name], tokens(3)), None, 0)
        assert step.tokens == 0 and step.rows_T.tolist() == [-1] * 8
    for name in ("cmpl-_warmup_0_", "_mine"):
        second().prepare_inputs(scheduled((name, None)), laid_out_as([name], tokens(3)), None, 0)
        assert step.tokens == 3


def test_hooking_again_changes_nothing(watched):
    _, _, first, _ = watched
    once = first._prepare_inputs
    hook.watch_device_requests()
    assert first._prepare_inputs is once


def test_each_engine_s_runner_lays_out_its_own_steps(watched):
    state, step, _, second = watched
    other = second()
    other.vllm_config = config_of_an_engine()
    theirs = with_one_layer(engine_of(other.vllm_config))
    theirs.step = StepRows(8, "cpu")
    second().prepare_inputs(
        scheduled(("a", None), ("b", 40)), laid_out_as(["a", "b"], tokens(1, 1)), None, 0
    )
    other.prepare_inputs(
        scheduled(("b", None), ("a", 40)), laid_out_as(["b", "a"], tokens(2, 2)), None, 0
    )
    assert step.rows_T.tolist() == [0, 41, -1, -1, -1, -1, -1, -1]
    assert theirs.step.rows_T.tolist() == [0, 0, 41, 41, -1, -1, -1, -1]
    other._dummy_run(5)
    assert (step.tokens, theirs.step.tokens) == (2, 0)
    assert state.token_rows_T.tolist() == [0, 41]


def test_a_model_without_experts_is_left_alone(watched):
    _, step, _, second = watched
    dense = second()
    dense.vllm_config = config_of_an_engine()
    answer = dense.prepare_inputs(scheduled(("a", None)), laid_out_as(["a"], tokens(3)), None, 0)
    assert answer[0] == "second" and dense._dummy_run(5) == 5
    assert step.tokens == 0


def test_on_a_cpu_the_rows_stay_on_the_host(monkeypatch):
    config = config_of_an_engine()
    first = type("First", (FirstRunner,), {"vllm_config": config})
    monkeypatch.setattr(hook, "model_runner_class", lambda: first)
    engine = with_one_layer(engine_of(config))
    hook.watch_requests()
    first(["b", "a"])._prepare_inputs(scheduled(("a", None), ("b", 40)), tokens(2, 1))
    assert engine.state.token_rows_T.tolist() == [41, 41, 0]


PLAIN = {
    "data_parallel_size": 1,
    "use_sequence_parallel_moe": False,
    "prefill_context_parallel_size": 1,
    "use_ubatching": False,
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"data_parallel_size": 2}, None),
        ({"use_sequence_parallel_moe": True}, "sequence-parallel"),
        ({"prefill_context_parallel_size": 2}, "prefill context"),
        ({"use_ubatching": True}, "dual-batch"),
        ({"speculative_config": object()}, "speculative"),
    ],
)
def test_what_mixes_tokens_is_named(changed, reason):
    speculative = {**changed}.pop("speculative_config", None)
    parallel = {**PLAIN, **{k: v for k, v in changed.items() if k in PLAIN}}
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel), speculative_config=speculative
    )
    found = request_rows_unavailable(config)
    assert found is None if reason is None else found.startswith(reason)
