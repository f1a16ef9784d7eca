"""How the CPU leaves skipped assignments out of the grouped kernel.

vLLM's CPU kernel indexes its buffers with every id it is given, so an id of -1
corrupts memory; and a weight of zero is still computed. Three forms remain, taken
in this order:

- *even*: every token keeps equally many experts (always so for one token, and at
  level 1). The kernel runs with that smaller top-k on the same rows: nothing is
  gathered, nothing rounded twice.
- *redirect*: with few rows the kernel is bound by the expert weights it reads; a
  skipped slot points at the token's top-1 expert with weight zero.
- *compact*: kept (token, expert) pairs are gathered, run with top-k 1 and summed
  in float32. Fewer rows to compute, which pays where many rows run.

T tokens, K top-k, N kept pairs, D model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from leanmoe_runtime.native import library

# Rows up to which redirecting beats compacting; measured by `leanmoe bench kernel`.
REDIRECT_MAX_ROWS = 4

_EVEN, _REDIRECT, _COMPACT = 1, 2, 3
_FEW_PAIRS = 1024
_VIEWS_UP_TO_ROWS = 32
_SUMS = {torch.bfloat16: "leanmoe_sum_bfloat16", torch.float32: "leanmoe_sum_float32"}

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Plan(NamedTuple):
    """What the kernel is given. Valid until the planner's next plan.

    ``weights`` and ``ids`` are ``[T, k]``, or ``[N, 1]`` where ``rows_N`` names the token of
    each pair; both are ``None`` where nothing is skipped.
    """

    skipped: int
    weights: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    rows_N: torch.Tensor | None = None


class _Pointers(ctypes.Structure):
    _fields_ = (
        ("keep", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
    )


class Planner:
    """Applies the skip rule in memory of its own; one per process serves all layers."""

    def __init__(self) -> None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._decide = library().leanmoe_plan
        self._decide.argtypes = [
            *(pointer, pointer, pointer, count, count),
            *(pointer, pointer, ctypes.c_int, count),
        ]
        self._decide.restype = count
        self._reserve(_FEW_PAIRS)

    def _reserve(self, pairs: int) -> None:
        self._pairs = pairs
        self._keep = torch.empty(pairs, dtype=torch.uint8)
        self._weights = torch.empty(pairs, dtype=torch.float32)
        self._ids = torch.empty(pairs, dtype=torch.int32)
        self._rows = torch.empty(pairs, dtype=torch.int64)
        parts = (self._keep, self._weights, self._ids, self._rows)
        self._pointers = _Pointers(*(part.data_ptr() for part in parts))
        self._address = ctypes.addressof(self._pointers)
        # Views are made once: a handful of tensor operations costs more than the rule.
        self._plans: dict[tuple[int, int, int], Plan] = {}

    def plan(
        self,
        weights_TK: torch.Tensor,
        ids_TK: torch.Tensor,
        betas: torch.Tensor,
        renormalize: bool,
        redirect_max_rows: int = REDIRECT_MAX_ROWS,
        token_rows_T: torch.Tensor | None = None,
    ) -> Plan:
        """Decide from the router's weights and ids on the host.

        ``betas`` is a float32 table, of which token i uses the row ``token_rows_T[i]`` (int32,
        inside the table), or the first where that is ``None``.
        """
        rows, top_k = weights_TK.shape
        if token_rows_T is not None and len(token_rows_T) != rows:
            raise ValueError(f"{len(token_rows_T)} rows of betas were given for {rows} tokens")
        # As they come from vLLM's CPU router; C code must not trust that.
        weights_TK = weights_TK.to(torch.float32).contiguous()
        ids_TK = ids_TK.to(torch.int32).contiguous()
        betas = betas.to(torch.float32).contiguous()
        if rows * top_k > self._pairs:
            self._reserve(rows * top_k)
        found = self._decide(
            self._address,
            weights_TK.data_ptr(),
            ids_TK.data_ptr(),
            rows,
            top_k,
            betas.data_ptr(),
            None if token_rows_T is None else token_rows_T.data_ptr(),
            renormalize,
            redirect_max_rows,
        )
        plan = self._plans.get((rows, top_k, found))
        return self._view(rows, top_k, found) if plan is None else plan

    def _view(self, rows: int, top_k: int, found: int) -> Plan:
        kept, form = divmod(found, 4)
        plan = Plan(rows * top_k - kept)
        if form == _REDIRECT:
            plan = self._shaped(plan.skipped, (rows, top_k))
        elif form == _EVEN:
            plan = self._shaped(plan.skipped, (rows, kept // rows))
        elif form == _COMPACT:
            plan = self._shaped(plan.skipped, (kept, 1))._replace(rows_N=self._rows[:kept])
        # More rows leave too many numbers of kept pairs to keep a view of each.
        if rows <= _VIEWS_UP_TO_ROWS:
            self._plans[rows, top_k, found] = plan
        return plan

    def _shaped(self, skipped: int, size: tuple[int, int]) -> Plan:
        pairs = size[0] * size[1]
        return Plan(skipped, self._weights[:pairs].view(size), self._ids[:pairs].view(size))


def run(kernel: Kernel, x_TD: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Output of the kept assignments of a plan that skips, ``[T, D]``.

    ``kernel(x, weights, ids)`` is the stock grouped kernel for any number of ids per row.
    """
    assert plan.weights is not None and plan.ids is not None
    if plan.rows_N is None:
        return kernel(x_TD, plan.weights, plan.ids)
    out_ND = kernel(x_TD.index_select(0, plan.rows_N), plan.weights, plan.ids)
    # Older compilers know no half precision; a sum in float32 is what it is anyway.
    addable_ND = out_ND if out_ND.dtype in _SUMS else out_ND.float()
    out_TD = torch.empty(x_TD.shape, dtype=addable_ND.dtype)
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
