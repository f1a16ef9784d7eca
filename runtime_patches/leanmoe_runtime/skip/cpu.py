"""How the CPU leaves skipped assignments out of the grouped kernel.

vLLM's CPU kernel indexes its buffers with every id it is given, so an id of -1
corrupts memory; and a weight of zero is still computed. Three forms remain, taken
in this order:

- *even*: every token keeps equally many experts (always so for one token, and at
  level 1). The kernel runs with that smaller top-k on the same rows: nothing is
  gathered, nothing rounded twice.
- *redirect*: a skipped slot points at the token's top-1 expert with weight zero. Taken
  with few rows, where the kernel is bound by the expert weights it reads, and where
  little is skipped, because gathering would cost more.
- *compact*: kept (token, expert) pairs are gathered, run with top-k 1 and summed
  in float32. Fewer rows to compute, which pays where many rows run.

Where the kernel first brings the tokens of several data-parallel ranks together, rows and
top-k must be what all ranks expect: there only *redirect* is taken (``SHAPES_STAY``).

T tokens, K top-k, E experts, N kept pairs, D model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from leanmoe_runtime.native import library
from leanmoe_runtime.state import LayerState

# Rows up to which redirecting beats compacting; measured by `leanmoe bench kernel`.
REDIRECT_MAX_ROWS = 4
# As many rows and slots as the router gave, whatever is skipped.
SHAPES_STAY = -1

_EVEN, _REDIRECT, _COMPACT = 1, 2, 3
_FEW_PAIRS, _FEW_EXPERTS = 1024, 128
_VIEWS_UP_TO_ROWS = 32
_SUMS = {torch.bfloat16: "leanmoe_sum_bfloat16", torch.float32: "leanmoe_sum_float32"}

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Plan(NamedTuple):
    """What the kernel is given instead of the router's choice. Valid until the next plan.

    ``weights`` and ``ids`` are ``[T, k]``, or ``[N, 1]`` where ``rows_N`` names the token of
    each pair.
    """

    weights: torch.Tensor
    ids: torch.Tensor
    rows_N: torch.Tensor | None = None


class Budget(NamedTuple):
    """The most distinct experts of a step. With ``logits_TE`` assignments move, else vanish."""

    experts: int
    logits_TE: torch.Tensor | None = None


class _Plan(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("keep", "weights", "ids", "rows", "changed_weights", "changed_ids"),
            *("loaded", "mass", "taken"),
        )
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "ids", "rows", "logits", "betas")),
        *((name, ctypes.c_void_p) for name in ("factors", "counts", "skipped")),
        *((name, ctypes.c_int64) for name in ("t", "k", "e")),
        *((name, ctypes.c_int64) for name in ("renormalize", "redirect_max_rows", "budget")),
    )


class Planner:
    """Decides steps in memory of its own; one per process serves all layers."""

    def __init__(self) -> None:
        self._decide = library().leanmoe_plan
        self._decide.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._decide.restype = ctypes.c_int64
        self._step = _Step()
        self._step_address = ctypes.addressof(self._step)
        self._pairs = self._experts = 0
        self._reserve(_FEW_PAIRS, _FEW_EXPERTS)

    def _reserve(self, pairs: int, experts: int) -> None:
        self._pairs, self._experts = max(pairs, self._pairs), max(experts, self._experts)
        pairs, experts = self._pairs, self._experts

        def empty(size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device="cpu")

        self._weights = empty(pairs, torch.float32)
        self._ids = empty(pairs, torch.int32)
        self._rows = empty(pairs, torch.int64)
        self._parts = (
            empty(pairs, torch.uint8),
            *(self._weights, self._ids, self._rows),
            empty(pairs, torch.float32),
            empty(pairs, torch.int32),
            empty(experts, torch.uint8),
            empty(experts, torch.float32),
            empty(experts, torch.uint8),
        )
        self._memory = _Plan(*(part.data_ptr() for part in self._parts))
        self._memory_address = ctypes.addressof(self._memory)
        # Views are made once: a handful of tensor operations costs more than the rule.
        self._plans: dict[tuple[int, int, int], Plan] = {}

    def plan(
        self,
        weights_TK: torch.Tensor,
        ids_TK: torch.Tensor,
        layer: LayerState,
        token_rows_T: torch.Tensor | None = None,
        budget: Budget | None = None,
        redirect_max_rows: int = REDIRECT_MAX_ROWS,
        skipped_T: torch.Tensor | None = None,
    ) -> Plan | None:
        """Decide a step from the router's weights and ids on the host, and count it.

        Token i uses the row ``token_rows_T[i]`` (int32, flags included) of the layer's betas, or
        the first where that is ``None``. Each token's skipped assignments are added to
        ``skipped_T`` (int32). ``None`` where the router's choice stands.
        """
        rows, top_k = weights_TK.shape
        if token_rows_T is not None and len(token_rows_T) != rows:
            raise ValueError(f"{len(token_rows_T)} rows of betas were given for {rows} tokens")
        if skipped_T is not None and len(skipped_T) != rows:
            raise ValueError(f"room for {len(skipped_T)} counts was given for {rows} tokens")
        # As they come from vLLM's CPU router; C code must not trust that.
        weights_TK = weights_TK.to(torch.float32).contiguous()
        ids_TK = ids_TK.to(torch.int32).contiguous()
        if rows * top_k > self._pairs or layer.n_experts > self._experts:
            self._reserve(rows * top_k, layer.n_experts)
        step, logits_TE = self._step, None
        step.weights, step.ids = weights_TK.data_ptr(), ids_TK.data_ptr()
        step.rows = None if token_rows_T is None else token_rows_T.data_ptr()
        step.betas, step.counts = layer.betas.data_ptr(), layer.counters_address
        step.factors = layer.factors_address
        step.skipped = None if skipped_T is None else skipped_T.data_ptr()
        step.t, step.k, step.e = rows, top_k, layer.n_experts
        step.renormalize, step.redirect_max_rows = layer.renormalize, redirect_max_rows
        step.budget, step.logits = 0, None
        if budget is not None:
            step.budget, logits_TE = budget.experts, _logits(budget, rows, layer.n_experts)
            step.logits = None if logits_TE is None else logits_TE.data_ptr()
        found = self._decide(self._memory_address, self._step_address)
        if not found % 4:
            return None
        plan = self._plans.get((rows, top_k, found))
        return self._view(rows, top_k, found) if plan is None else plan

    def _view(self, rows: int, top_k: int, found: int) -> Plan:
        kept, form = divmod(found, 4)
        if form == _REDIRECT:
            plan = self._shaped((rows, top_k))
        elif form == _EVEN:
            plan = self._shaped((rows, kept // rows))
        else:
            assert form == _COMPACT
            plan = self._shaped((kept, 1))._replace(rows_N=self._rows[:kept])
        # More rows leave too many numbers of kept pairs to keep a view of each.
        if rows <= _VIEWS_UP_TO_ROWS:
            self._plans[rows, top_k, found] = plan
        return plan

    def _shaped(self, size: tuple[int, int]) -> Plan:
        pairs = size[0] * size[1]
        return Plan(self._weights[:pairs].view(size), self._ids[:pairs].view(size))


def _logits(budget: Budget, rows: int, experts: int) -> torch.Tensor | None:
    if budget.logits_TE is None:
        return None
    if tuple(budget.logits_TE.shape) != (rows, experts):
        raise ValueError(
            f"router logits are {list(budget.logits_TE.shape)}, expected {[rows, experts]}"
        )
    return budget.logits_TE.to(torch.float32).contiguous()


def run(kernel: Kernel, x_TD: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Output of a plan's assignments, ``[T, D]``.

    ``kernel(x, weights, ids)`` is the stock grouped kernel for any number of ids per row.
    """
    if plan.rows_N is None:
        return kernel(x_TD, plan.weights, plan.ids)
    out_ND = kernel(x_TD.index_select(0, plan.rows_N), plan.weights, plan.ids)
    # Older compilers know no half precision; a sum in float32 is what it is anyway.
    addable_ND = out_ND if out_ND.dtype in _SUMS else out_ND.float()
    out_TD = torch.empty(x_TD.shape, dtype=addable_ND.dtype, device=x_TD.device)
    return _sum(addable_ND.contiguous(), plan.rows_N, out_TD).to(x_TD.dtype)


def _sum(out_ND: torch.Tensor, rows_N: torch.Tensor, out_TD: torch.Tensor) -> torch.Tensor:
    """Pairs of a token summed in float32; every token has one at least."""
    function: Any = library()[_SUMS[out_ND.dtype]]
    pairs, width = out_ND.shape
    function(
        ctypes.c_void_p(out_ND.data_ptr()),
        ctypes.c_void_p(rows_N.data_ptr()),
        ctypes.c_int64(pairs),
        ctypes.c_int64(width),
        ctypes.c_void_p(out_TD.data_ptr()),
    )
    return out_TD
