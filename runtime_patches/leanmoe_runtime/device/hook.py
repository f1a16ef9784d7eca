"""Fills the step's rows from both of vLLM's model runners, before each step.

The second runner is CUDA's default, the first still serves what it does not support. A step's
copy is queued on the stream that runs the model, behind the step before and ahead of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leanmoe_runtime.compat import model_runner_class, second_model_runner_class
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.requests import Batch, RequestRows, first_runner_batch
from leanmoe_runtime.state import SkipState


def watch_device_requests(state: SkipState, step: StepRows) -> None:
    """Make this process's model runner fill ``step``; once per class."""
    rows = RequestRows(state)

    def begin(scheduled: Any, batch: Batch) -> None:
        rows.begin_step(scheduled, batch)
        if _is_warm_up(batch):
            step.reset()
        else:
            step.begin(state.token_rows_T, int(batch.tokens_R.sum()))

    first, second = model_runner_class(), second_model_runner_class()
    _before_inputs(first, "_prepare_inputs", first_runner_batch, begin)
    _before_inputs(second, "prepare_inputs", _second_runner_batch, begin)
    for runner in (first, second):
        for method in ("_dummy_run", "capture_model"):
            _before_dummy(runner, method, step)


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
    cls: Any,
    method: str,
    batch_of: Callable[[Any, Any], Batch],
    begin: Callable[[Any, Batch], None],
) -> None:
    stock = getattr(cls, method)
    if getattr(stock, "leanmoe", False):
        return

    # Both methods: the scheduler's output first, then what says the order.
    def prepare(self: Any, scheduler_output: Any, laid_out: Any, *rest: Any, **named: Any) -> Any:
        begin(scheduler_output, batch_of(self, laid_out))
        return stock(self, scheduler_output, laid_out, *rest, **named)

    prepare.leanmoe = True  # type: ignore[attr-defined]
    setattr(cls, method, prepare)


def _before_dummy(cls: Any, method: str, step: StepRows) -> None:
    stock = getattr(cls, method)
    if getattr(stock, "leanmoe", False):
        return

    def run(self: Any, *args: Any, **named: Any) -> Any:
        step.reset()
        return stock(self, *args, **named)

    run.leanmoe = True  # type: ignore[attr-defined]
    setattr(cls, method, run)
