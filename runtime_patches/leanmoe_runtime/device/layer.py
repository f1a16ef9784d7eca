"""One layer's routing on a device: decide, count, or leave the launch out altogether.

When level 0 costs nothing and when it does: where Python runs at every step (eager mode, shapes
past the captured ones), a real step at beta 0 without a request's own level launches nothing and
its tokens are counted on the host. A captured graph replays what was captured, and the decision
lies inside the opaque ``vllm.moe_forward``, which full and piecewise graphs both capture: there
one small launch per layer remains at level 0 (it reads T rows and K weights each and writes
nothing). It could only go with a second set of graphs captured without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.device.table import DeviceTable
from leanmoe_runtime.state import LayerState, SkipState

Routing = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[..., None]


def _is_capturing(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _triton_kernel() -> Kernel:
    from leanmoe_runtime.device.kernel import skip

    return skip


class DeviceLayer:
    """Called with what the stock router chose; gives what the experts are to compute.

    ``mode`` is asked at the first call: vLLM chooses the experts class after loading.
    """

    def __init__(
        self,
        state: LayerState,
        shared: SkipState,
        step: StepRows,
        experts: int,
        mode: Callable[[], SkipMode],
        kernel: Kernel | None = None,
    ) -> None:
        self._state, self._shared, self._step = state, shared, step
        self._mode_of, self._kernel = mode, kernel
        # At once: memory that a capture allocates is the graph's, and zeroed by every replay.
        state.device = DeviceTable.make(state.betas, experts, step.rows_T.device)
        self._table = state.device
        self.mode: SkipMode | None = None  # asked for at the first call

    def __call__(self, weights_TK: torch.Tensor, ids_TK: torch.Tensor) -> Routing:
        self._state.calls += 1
        if self._is_idle() and not _is_capturing(weights_TK):
            self._state.counters.tokens += self._step.tokens
            return weights_TK, ids_TK
        # Decided in place: a router that hands out a view of something keeps it.
        weights_TK, ids_TK = weights_TK.contiguous(), ids_TK.contiguous()
        self._launch()(
            weights_TK,
            ids_TK,
            self._step.rows_T,
            self._table,
            renormalize=self._state.renormalize,
            mode=self._safe_mode(ids_TK.dtype),
        )
        return weights_TK, ids_TK

    def _is_idle(self) -> bool:
        """A real step in which nobody skips. Dummy runs launch, so that all is compiled by then."""
        exact = self._state.beta <= 0.0 and self._shared.token_rows_T is None
        return exact and self._step.tokens > 0

    def _safe_mode(self, ids: torch.dtype) -> SkipMode:
        if self.mode is None:
            self.mode = self._mode_of()
        # An unsigned id cannot say "none".
        return SkipMode.ZERO if self.mode is SkipMode.MASK and not ids.is_signed else self.mode

    def _launch(self) -> Kernel:
        if self._kernel is None:
            self._kernel = _triton_kernel()
        return self._kernel


def step_rows(vllm_config: Any, device: torch.device | str, *, aligned: bool) -> StepRows:
    """A buffer for the largest step the router can see under this configuration."""
    largest = max(
        vllm_config.scheduler_config.max_num_batched_tokens,
        vllm_config.compilation_config.max_cudagraph_capture_size or 0,
    )
    ranks = 1 if aligned else vllm_config.parallel_config.data_parallel_size
    return StepRows(largest * ranks, device, aligned=aligned)
