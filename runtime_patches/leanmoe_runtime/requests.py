"""Levels of single requests: which row of the layers' beta tables each token of a step uses.

The server puts a request's level into ``SamplingParams.extra_args``, which the scheduler
brings to every worker. The model runner's input step says in which order the requests'
tokens lie; from the two follows one row per token, read by all layers of the step.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.messages import Phases
from leanmoe.policy import RequestLevel
from leanmoe_runtime.state import (
    ENGINE_ROW,
    EXACT_ROW,
    MANDATORY,
    SkipState,
    request_row,
)

Counts = NDArray[np.int32]


class Batch(NamedTuple):
    """The requests of a step in the order of their tokens, R of them."""

    names: Sequence[str]
    tokens_R: Counts  # in this step
    computed_R: Counts  # before it
    prompt_R: Counts  # tokens of each prompt
    alive: Container[str]  # requests that run or wait to go on

    @property
    def prefill(self) -> Counts:
        """How many of each request's tokens are of its prompt; they come first."""
        left_R: Counts = np.minimum(np.maximum(self.prompt_R - self.computed_R, 0), self.tokens_R)
        return left_R


class RequestRows:
    """Remembers the row of every running request that has a level of its own."""

    def __init__(self, state: SkipState) -> None:
        self._state = state
        self._row_of: dict[str, int] = {}

    def begin_step(self, scheduled: Any, batch: Batch) -> None:
        """Lay out a step; ``scheduled`` is the scheduler's output."""
        for finished in scheduled.finished_req_ids:
            self._row_of.pop(finished, None)
        # A request that ends in a step without tokens is not heard of here.
        if len(self._row_of) > len(batch.names):
            self._row_of = {n: row for n, row in self._row_of.items() if n in batch.alive}
        for new in scheduled.scheduled_new_reqs:
            self._learn(new)
        decode_only = self._state.phases is Phases.DECODE
        rows_T = self._rows(batch, decode_only) if self._row_of or decode_only else None
        self._state.token_rows_T = rows_T

    def _learn(self, new: Any) -> None:
        self._row_of.pop(new.req_id, None)
        extra = getattr(new.sampling_params, "extra_args", None) or {}
        code = extra.get(self._state.request_key)
        if code is not None:
            # The table's length guards memory that C code reads.
            asked = RequestLevel.unpack(int(code))
            mandatory = MANDATORY if asked.past_budgets else 0
            self._row_of[new.req_id] = request_row(asked.hundredths) | mandatory

    def _rows(self, batch: Batch, decode_only: bool) -> torch.Tensor | None:
        rows_R = np.array([self._row_of.get(n, ENGINE_ROW) for n in batch.names], dtype=np.int32)
        rows_T = np.repeat(rows_R, batch.tokens_R)
        if decode_only:
            rows_T[_first_of_each(batch.prefill, batch.tokens_R)] = EXACT_ROW
        return torch.from_numpy(rows_T) if rows_T.any() else None


def _first_of_each(first_R: Counts, tokens_R: Counts) -> NDArray[np.bool_]:
    """Which of the tokens [T] are among the first ``first_R`` of their request."""
    starts_R = np.cumsum(tokens_R) - tokens_R
    place_T = np.arange(tokens_R.sum()) - np.repeat(starts_R, tokens_R)
    found: NDArray[np.bool_] = place_T < np.repeat(first_R, tokens_R)
    return found


def first_runner_batch(runner: Any, tokens_R: Counts) -> Batch:
    """The batch of vLLM's first model runner, which the CPU's inherits."""
    held, count = runner.input_batch, len(tokens_R)
    return Batch(
        held.req_ids[:count],
        tokens_R,
        held.num_computed_tokens_cpu[:count],
        held.num_prompt_tokens[:count],
        runner.requests,
    )
