"""Lays a step's rows out in vLLM's model runners, before each step.

A CPU's layers read them from the host. On a device a step's copy is queued on the stream that runs
the model, behind the step before and ahead of this one; the second runner is CUDA's default, the
first still serves what it does not support. Methods are replaced on the class, once per process,
and find the engine by the runner they are called on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leanmoe_runtime.compat import model_runner_class, second_model_runner_class
from leanmoe_runtime.engine import engine_of
from leanmoe_runtime.replacement import Function, replace_once
from leanmoe_runtime.requests import Batch, first_runner_batch

Begin = Callable[[Any, Any, Batch], None]


def watch_requests() -> None:
    """Let a CPU's model runner lay out each step."""
    _before_inputs(model_runner_class(), "_prepare_inputs", first_runner_batch, _begin)


def watch_device_requests() -> None:
    """Let both model runners bring each step's rows to their device."""
    first, second = model_runner_class(), second_model_runner_class()
    _before_inputs(first, "_prepare_inputs", first_runner_batch, _begin_on_device)
    _before_inputs(second, "prepare_inputs", _second_runner_batch, _begin_on_device)
    for runner in (first, second):
        for method in ("_dummy_run", "capture_model"):
            _before_dummy(runner, method)


def _begin(runner: Any, scheduled: Any, batch: Batch) -> None:
    engine = engine_of(runner.vllm_config)
    engine.requests.begin_step(scheduled, batch)
    engine.tally.begin_step(scheduled, batch, engine.state.may_skip)


def _begin_on_device(runner: Any, scheduled: Any, batch: Batch) -> None:
    engine = engine_of(runner.vllm_config)
    engine.requests.begin_step(scheduled, batch)
    if engine.step is None:
        return  # a model without experts
    if _is_warm_up(batch):
        engine.step.reset()
    else:
        engine.step.begin(engine.state.token_rows_T, int(batch.tokens_R.sum()))
        if engine.step.aligned:
            engine.tally.begin_step(scheduled, batch, engine.state.may_skip)


def _is_warm_up(batch: Batch) -> bool:
    """Steps of requests that vLLM makes up at its start, named ``_warmup_0_`` or alike.

    Its servers put a word before the name of a client's request.
    """
    first = batch.names[0] if batch.names else ""
    return first.startswith("_") and "warmup" in first


def _second_runner_batch(runner: Any, batch_req_state: Any) -> Batch:
    return Batch(
        batch_req_state.req_ids,
        batch_req_state.num_scheduled_tokens,
        batch_req_state.num_computed_prefill_tokens_np,
        # Not its prefill length, which after a preemption holds what was generated too.
        runner.req_states.prompt_len.np[batch_req_state.idx_mapping_np],
        runner.req_states.req_id_to_index,
    )


def _before_inputs(
    cls: Any, method: str, batch_of: Callable[[Any, Any], Batch], begin: Begin
) -> None:
    def around(stock: Function) -> Function:
        # Both methods: the scheduler's output first, then what says the order.
        def prepare(
            self: Any, scheduler_output: Any, laid_out: Any, *rest: Any, **named: Any
        ) -> Any:
            begin(self, scheduler_output, batch_of(self, laid_out))
            return stock(self, scheduler_output, laid_out, *rest, **named)

        return prepare

    replace_once(cls, method, around)


def _before_dummy(cls: Any, method: str) -> None:
    def around(stock: Function) -> Function:
        def run(self: Any, *args: Any, **named: Any) -> Any:
            step = engine_of(self.vllm_config).step
            if step is not None:
                step.reset()
            return stock(self, *args, **named)

        return run

    replace_once(cls, method, around)
