"""One layer's routing on a device: choose, decide and count in as few launches as can be.

- Where Python runs at every step (eager mode, shapes past the captured ones), a real step in which
  nobody skips is stock's own, and its tokens are counted on the host.
- A router that ``routing.py`` covers decides in its own launch, and lays out the blocks of the
  experts' kernel there too where that is faster. Level 0 costs no launch more than stock.
- Any other router is followed by one more launch.
- Where the engine was started with a budget on distinct experts and a step can exceed it, two
  launches follow the router's.

A captured graph replays what was captured, so what it holds is chosen by shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.blocks import Blocks, attach_blocks
from leanmoe_runtime.device.routing import Routing
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.device.table import DeviceTable
from leanmoe_runtime.device.verification import is_exact
from leanmoe_runtime.state import LayerState, SkipState

Chosen = tuple[torch.Tensor, torch.Tensor]
Stock = Callable[[], Chosen]
StockOf = Callable[[torch.Tensor], Chosen]


class Launches(Protocol):
    """``device/launch.py``, or what stands in for it where there is no Triton."""

    @property
    def Step(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def route(self) -> Callable[..., Chosen]: ...
    @property
    def decide(self) -> Callable[..., None]: ...
    @property
    def spend(self) -> Callable[..., None]: ...


class LayerExperts(Protocol):
    """What the experts of a layer tell its router."""

    def device_mode(self) -> SkipMode:
        """How they leave an assignment out."""

    def empty_blocks(self, tokens: int, logits_TE: torch.Tensor) -> Blocks | None:
        """Room for the blocks that they will ask for, where the routing launch may fill it."""

    def can_move(self) -> bool:
        """Whether router logits say what another expert would weigh."""


def _is_capturing(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _triton_launches() -> Launches:
    from leanmoe_runtime.device import launch

    return launch


class DeviceLayer:
    """Asked for every routing of a layer; gives what the experts are to compute.

    ``routing`` is ``None`` for a router that keeps its own launches.
    """

    def __init__(
        self,
        state: LayerState,
        shared: SkipState,
        step: StepRows,
        experts: LayerExperts,
        routing: Routing | None,
        padding: Callable[[int], torch.Tensor | None] = lambda tokens: None,
        launches: Launches | None = None,
    ) -> None:
        self._state, self._shared, self._step = state, shared, step
        self._experts, self._routing, self._padding = experts, routing, padding
        self._launches = launches
        self._is_exact: bool | None = None  # until it was tried
        # At once: memory that a capture allocates is the graph's, and zeroed by every replay.
        self._table = DeviceTable.make(state.betas, state.n_experts, step.rows_T.device)
        self._table.push_factors(state.factors)
        state.device = self._table
        step.tables.append(self._table)
        step.top_k = max(step.top_k, state.top_k)
        self._mode: SkipMode | None = None

    def __call__(
        self,
        stock: Stock,
        logits_TE: torch.Tensor,
        ids: torch.dtype | None,
        stock_of: StockOf,
    ) -> Chosen:
        """``stock`` routes this step as vLLM does, ``stock_of`` any logits.

        ``ids`` is the type that the experts want, if they want one.
        """
        self._state.calls += 1
        capturing = _is_capturing(logits_TE)
        if self._is_idle() and not capturing:
            self._state.counters.tokens += self._step.tokens
            return stock()
        tokens = len(logits_TE)
        # Tried in the first dummy run, whatever that one launches.
        routing = self._covered(logits_TE, stock_of, capturing)
        if self._spends(tokens, capturing):
            return self._decided(stock, logits_TE)
        if routing is None:
            return self._decided(stock, None)
        ids = ids or torch.int32
        padding_T = self._padding(tokens) if routing.pads else None
        return self._routed(routing, logits_TE, ids, padding_T, self._step_of(ids))

    def _covered(
        self, logits_TE: torch.Tensor, stock_of: StockOf, capturing: bool
    ) -> Routing | None:
        """The router's arithmetic where the routing kernel gives stock's bits for it."""
        routing = self._routing
        # Under expert-parallel load balancing a router's count is not that of the logits.
        if routing is None or logits_TE.shape[1] != routing.n_experts:
            return None
        if self._is_exact is None and not capturing:
            trial = self._trial(routing, logits_TE)
            self._is_exact = is_exact(routing, trial, stock_of, logits_TE)
        return routing if self._is_exact else None

    def _trial(self, routing: Routing, logits_TE: torch.Tensor) -> Callable[[torch.Tensor], Chosen]:
        """Routes at beta 0 on tables of its own, with all that a real step has."""
        device, mode = logits_TE.device, self._safe_mode(torch.int32)
        mine, other = (
            DeviceTable.make(torch.zeros_like(self._state.betas), routing.n_experts, device)
            for _ in range(2)
        )
        pads = routing.pads and self._padding(1) is not None

        def trial(logits_TE: torch.Tensor) -> Chosen:
            rows_T = torch.zeros(len(logits_TE), dtype=torch.int32, device=device)
            padding_T = torch.zeros_like(rows_T, dtype=torch.bool) if pads else None
            counted_T = torch.zeros_like(rows_T)
            step = self.launches.Step(rows_T, counted_T, mine, other, self._state.renormalize, mode)
            return self._routed(routing, logits_TE, torch.int32, padding_T, step)

        return trial

    def _routed(
        self,
        routing: Routing,
        logits_TE: torch.Tensor,
        ids: torch.dtype,
        padding_T: torch.Tensor | None,
        step: Any,
    ) -> Chosen:
        blocks = self._experts.empty_blocks(len(logits_TE), logits_TE)
        weights_TK, ids_TK = self.launches.route(
            logits_TE, routing, step, ids=ids, padding_T=padding_T, blocks=blocks
        )
        if blocks is not None:
            attach_blocks(ids_TK, blocks)
        return weights_TK, ids_TK

    def _decided(self, stock: Stock, logits_TE: torch.Tensor | None) -> Chosen:
        """Stock's choice, decided behind it: with logits under the budget, else by the rule."""
        weights_TK, ids_TK = stock()
        # Decided in place: a router that hands out a view of something keeps it.
        weights_TK, ids_TK = weights_TK.contiguous(), ids_TK.contiguous()
        step = self._step_of(ids_TK.dtype)
        if logits_TE is None:
            self.launches.decide(weights_TK, ids_TK, step)
        else:
            movable = logits_TE if self._experts.can_move() else None
            self.launches.spend(weights_TK, ids_TK, movable, self._step.union, step)
        return weights_TK, ids_TK

    def _is_idle(self) -> bool:
        """A real step in which nobody skips. Dummy runs launch, so that all is compiled by then.

        In no layer: each finishes the counts of the one before it.
        """
        exact = self._state.beta == 0.0 and not self._shared.skips
        exact = exact and self._shared.token_rows_T is None
        return exact and self._shared.union is None and self._step.tokens > 0

    def _spends(self, tokens: int, capturing: bool) -> bool:
        """By shape alone, but for steps that no graph holds: those follow the policy in force."""
        # All layers alike: each empties the scales of the one before it.
        if not self._step.union.may_bind(tokens * self._step.top_k):
            return False
        return capturing or self._step.tokens == 0 or self._shared.union is not None

    def _step_of(self, ids: torch.dtype) -> Any:
        return self.launches.Step(
            self._step.rows_T,
            self._step.counted.skipped_T,
            self._table,
            self._step.earlier(self._table),
            self._state.renormalize,
            self._safe_mode(ids),
        )

    def _safe_mode(self, ids: torch.dtype) -> SkipMode:
        """vLLM chooses the experts class after loading, so it is asked at the first call."""
        if self._mode is None:
            self._mode = self._experts.device_mode()
        # An unsigned id cannot say "none".
        return SkipMode.ZERO if self._mode is SkipMode.MASK and not ids.is_signed else self._mode

    def forget_mode(self) -> None:
        """Ask the experts again at the next call."""
        self._mode = None

    @property
    def launches(self) -> Launches:
        """Imported at first use: Triton is no part of a CPU's path."""
        if self._launches is None:
            self._launches = _triton_launches()
        return self._launches


def step_rows(
    vllm_config: Any, device: torch.device | str, *, aligned: bool, least_union: int = 0
) -> StepRows:
    """A buffer for the largest step the router can see under this configuration."""
    largest = max(
        vllm_config.scheduler_config.max_num_batched_tokens,
        vllm_config.compilation_config.max_cudagraph_capture_size or 0,
    )
    ranks = 1 if aligned else vllm_config.parallel_config.data_parallel_size
    return StepRows(largest * ranks, device, aligned=aligned, least_union=least_union)
