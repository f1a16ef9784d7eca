"""Levels of single requests: which row of the layers' beta tables each token of a step uses.

The server puts a request's level into ``SamplingParams.extra_args``, which the scheduler
brings to every worker. The model runner's input step says in which order the requests'
tokens lie; from the two follows one row per token, read by all layers of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.policy import HUNDREDTHS
from leanmoe_runtime.compat import model_runner_class
from leanmoe_runtime.state import ENGINE_ROW, SKIP_STATE, SkipState, request_row

Counts = NDArray[np.int32]


class RequestRows:
    """Remembers the row of every running request that has a level of its own."""

    def __init__(self, state: SkipState) -> None:
        self._state = state
        self._row_of: dict[str, int] = {}

    def begin_step(self, scheduled: Any, order: Sequence[str], tokens: Counts) -> None:
        """Lay out a step: ``tokens`` per request in ``order``; ``scheduled`` is the scheduler's."""
        for finished in scheduled.finished_req_ids:
            self._row_of.pop(finished, None)
        for new in scheduled.scheduled_new_reqs:
            self._learn(new)
        self._state.token_rows_T = self._rows(order, tokens) if self._row_of else None

    def _learn(self, new: Any) -> None:
        extra = getattr(new.sampling_params, "extra_args", None) or {}
        hundredths = extra.get(self._state.request_key)
        if hundredths is not None:
            # The table's length guards memory that C code reads.
            self._row_of[new.req_id] = request_row(min(max(int(hundredths), 0), HUNDREDTHS))

    def _rows(self, order: Sequence[str], tokens: Counts) -> torch.Tensor | None:
        rows = np.array([self._row_of.get(name, ENGINE_ROW) for name in order], dtype=np.int32)
        return torch.from_numpy(np.repeat(rows, tokens)) if rows.any() else None


def watch_requests() -> None:
    """Make this process's model runner lay out the rows before every step; once per process."""
    runner = model_runner_class()
    stock = runner._prepare_inputs
    if getattr(stock, "leanmoe", False):
        return
    rows = RequestRows(SKIP_STATE)

    def prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        rows.begin_step(scheduler_output, self.input_batch.req_ids, num_scheduled_tokens)
        return stock(self, scheduler_output, num_scheduled_tokens)

    prepare_inputs.leanmoe = True  # type: ignore[attr-defined]
    runner._prepare_inputs = prepare_inputs
