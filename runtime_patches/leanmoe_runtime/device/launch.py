"""The kernels as functions of tensors. Nothing here waits for the device or compiles by level.

T tokens, K top-k, E experts, R rows of a layer's table of betas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.blocks import Blocks
from leanmoe_runtime.device.budget_kernel import forget_kernel, spend_kernel, weigh_kernel
from leanmoe_runtime.device.decision_kernel import decide_kernel, harvest_kernel
from leanmoe_runtime.device.routing import Routing
from leanmoe_runtime.device.routing_kernel import route_kernel
from leanmoe_runtime.device.rows import Union
from leanmoe_runtime.device.table import DeviceTable

_MODES = {SkipMode.MASK: 0, SkipMode.REDIRECT: 1, SkipMode.ZERO: 2}
# Up to so many tokens each has a program of one warp to itself. More share one, so that its
# threads still exchange values without a barrier.
FEW_TOKENS = 64
_ROUTED_AT_ONCE, _WEIGHED_AT_ONCE, _DECIDED_AT_ONCE = 4, 8, 32


@dataclass(frozen=True)
class Step:
    """What a launch needs beside the routing: the step's rows, this layer's table, one before it.

    ``earlier`` is the table of the layer whose counts this launch finishes; with ``is_only`` it
    is this layer's own and is finished by a launch before. ``skipped_T`` int32 adds up what each
    token had skipped in the layers of the step.
    """

    rows_T: torch.Tensor
    skipped_T: torch.Tensor
    table: DeviceTable
    earlier: DeviceTable
    renormalize: bool
    mode: SkipMode

    @property
    def is_only(self) -> bool:
        return self.earlier is self.table


def _padded(number: int) -> int:
    return int(triton.next_power_of_2(number))


def _harvest_own(step: Step) -> None:
    table = step.table
    words = len(table.seen_W)
    harvest_kernel[(1,)](table.seen_W, table.counts, words, BLOCK_W=_padded(words), num_warps=1)


def _earlier(step: Step) -> tuple[DeviceTable, int]:
    """The table whose counts a launch finishes, and its words: none where they are finished."""
    if step.is_only:
        _harvest_own(step)
        return step.table, 0
    return step.earlier, len(step.earlier.seen_W)


def route(
    logits_TE: torch.Tensor,
    routing: Routing,
    step: Step | None,
    *,
    ids: torch.dtype = torch.int32,
    padding_T: torch.Tensor | None = None,
    blocks: Blocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids [T, K] of ``routing``, decided and counted where there is a ``step``.

    With ``blocks``, filled for the experts' kernel in the same launch; T * K is small then.
    """
    tokens = len(logits_TE)
    weights = torch.empty(tokens, routing.top_k, dtype=torch.float32, device=logits_TE.device)
    chosen = torch.empty(tokens, routing.top_k, dtype=ids, device=logits_TE.device)
    if not tokens:
        return weights, chosen
    logits_TE = logits_TE.contiguous()
    lanes, slots = routing.lanes(logits_TE.dtype), _padded(routing.top_k)
    if blocks is not None:
        at_once = _padded(tokens)
    else:
        at_once = 1 if tokens <= FEW_TOKENS else _ROUTED_AT_ONCE
    # Without a step nothing reads or writes a table; any tensor stands in.
    table = None if step is None else step.table
    earlier, earlier_words = (None, 0) if step is None else _earlier(step)
    words = -(-routing.n_experts // 32)
    nothing = weights
    route_kernel[(triton.cdiv(tokens, at_once),)](
        logits_TE,
        nothing if routing.bias_E is None else routing.bias_E,
        nothing if padding_T is None else padding_T,
        weights,
        chosen,
        nothing if table is None else table.betas_R,
        nothing if table is None else table.factors_E,
        nothing if step is None else step.rows_T,
        nothing if step is None else step.skipped_T,
        nothing if table is None else table.counts,
        nothing if table is None else table.seen_W,
        nothing if earlier is None else earlier.counts,
        nothing if earlier is None else earlier.seen_W,
        nothing if blocks is None else blocks.sorted_N,
        nothing if blocks is None else blocks.experts,
        nothing if blocks is None else blocks.n_sorted,
        tokens,
        0 if step is None else min(tokens, len(step.rows_T)),
        0 if table is None else len(table.betas_R),
        earlier_words,
        n_experts=routing.n_experts,
        T=at_once,
        H=lanes.threads,
        LEVELS=lanes.threads.bit_length() - 1,
        V=lanes.values,
        PER_LOAD=lanes.per_load,
        BY_BLOCK=lanes.by_block,
        K=routing.top_k,
        BLOCK_K=slots,
        K_LEVELS=slots.bit_length() - 1,
        BLOCK_W=_padded(words),
        EARLIER_W=_padded(max(earlier_words, 1)),
        SCORING=routing.scoring,
        HAS_BIAS=routing.bias_E is not None,
        HAS_PADDING=padding_T is not None,
        ZERO_PADDING=routing.zeroes_padding,
        GROUPED=routing.groups > 1,
        G=routing.groups,
        KEPT_G=routing.kept_groups,
        RENORMALIZE=routing.renormalize,
        SCALE=routing.scale,
        DECIDE=step is not None,
        MODE=2 if step is None else _MODES[step.mode],
        BLOCK_E=_padded(routing.n_experts),
        BLOCK_M=0 if blocks is None else blocks.rows,
        # The interpreter has no library of device functions.
        DEVICE_MATH=logits_TE.is_cuda,
        num_warps=1 if blocks is None else 4,
        # An addition fused with a multiplication rounds once, where stock rounds twice.
        enable_fp_fusion=False,
    )
    return weights, chosen


def decide(weights_TK: torch.Tensor, ids_TK: torch.Tensor, step: Step) -> None:
    """Decide and count what a router chose; both contiguous, changed in place."""
    tokens, top_k = weights_TK.shape
    if not tokens:
        return
    table = step.table
    earlier, earlier_words = _earlier(step)
    decide_kernel[(triton.cdiv(tokens, _DECIDED_AT_ONCE),)](
        weights_TK,
        ids_TK,
        table.betas_R,
        table.factors_E,
        step.rows_T,
        step.skipped_T,
        table.counts,
        table.seen_W,
        earlier.counts,
        earlier.seen_W,
        min(tokens, len(step.rows_T)),
        len(table.betas_R),
        earlier_words,
        table.n_experts,
        T=_DECIDED_AT_ONCE,
        K=top_k,
        BLOCK_K=_padded(top_k),
        BLOCK_W=_padded(len(table.seen_W)),
        EARLIER_W=_padded(max(earlier_words, 1)),
        RENORMALIZE=step.renormalize,
        MODE=_MODES[step.mode],
    )


def spend(
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    logits_TE: torch.Tensor | None,
    union: Union,
    step: Step,
) -> None:
    """Decide and count under the budget in force; with ``logits_TE`` assignments can move.

    Weights and ids contiguous, changed in place.
    """
    tokens, top_k = weights_TK.shape
    if not tokens:
        return
    table, real = step.table, min(tokens, len(step.rows_T))
    if step.is_only:
        _forget_own(step)
    earlier, earlier_words = _earlier(step)
    shared = {
        "K": top_k,
        "BLOCK_K": _padded(top_k),
        "BLOCK_W": _padded(len(table.seen_W)),
    }
    weigh_kernel[(triton.cdiv(tokens, _WEIGHED_AT_ONCE),)](
        weights_TK,
        ids_TK,
        table.betas_R,
        table.factors_E,
        step.rows_T,
        table.mass_E,
        table.bound_W,
        earlier.counts,
        earlier.seen_W,
        earlier.mass_E,
        earlier.bound_W,
        real,
        len(table.betas_R),
        table.n_experts,
        earlier_words,
        0 if step.is_only else earlier.n_experts,
        T=_WEIGHED_AT_ONCE,
        EARLIER_W=_padded(max(earlier_words, 1)),
        EARLIER_E=_padded(earlier.n_experts),
        num_warps=1,
        **shared,
    )
    spend_kernel[(tokens,)](
        weights_TK,
        ids_TK,
        weights_TK if logits_TE is None else logits_TE.contiguous(),
        table.betas_R,
        table.factors_E,
        step.rows_T,
        step.skipped_T,
        table.counts,
        table.seen_W,
        table.mass_E,
        table.bound_W,
        union.values,
        real,
        len(table.betas_R),
        table.n_experts,
        T=1,
        E=_padded(table.n_experts),
        RENORMALIZE=step.renormalize,
        MODE=_MODES[step.mode],
        CAN_MOVE=logits_TE is not None,
        **shared,
    )


def _forget_own(step: Step) -> None:
    table = step.table
    words = len(table.bound_W)
    forget_kernel[(1,)](
        table.mass_E,
        table.bound_W,
        table.n_experts,
        words,
        E=_padded(table.n_experts),
        BLOCK_W=_padded(words),
    )
