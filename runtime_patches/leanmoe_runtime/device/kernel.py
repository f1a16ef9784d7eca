"""The Triton kernel that applies the skip rule to one layer's routing, in place, and counts.

Imported on devices only, and by tests in a process that runs Triton's interpreter.
T tokens, K experts per token, E experts, R rows of the layer's table of betas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from leanmoe.messages import SkipMode
from leanmoe_runtime.rule import ROW_BITS

if TYPE_CHECKING:
    from leanmoe_runtime.device.table import DeviceTable

_MODES = {SkipMode.MASK: 0, SkipMode.REDIRECT: 1, SkipMode.ZERO: 2}
_BLOCK_T = 32
_ROW_BITS = tl.constexpr(ROW_BITS)
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


# A number of tokens must not compile anew in the middle of serving.
@triton.jit(do_not_specialize=["n_tokens"])  # type: ignore[untyped-decorator]
def _skip(  # type: ignore[no-untyped-def]  # noqa: ANN202
    weights_TK,  # noqa: ANN001
    ids_TK,  # noqa: ANN001
    betas_R,  # noqa: ANN001
    rows_T,  # noqa: ANN001
    counts,  # noqa: ANN001  tokens, skipped, nonfinite, steps, distinct experts
    mass,  # noqa: ANN001
    clock,  # noqa: ANN001  calls so far, programs of this call that are through
    seen_E,  # noqa: ANN001  call that last read the expert; one more entry for "any token"
    n_tokens,  # noqa: ANN001
    n_rows,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    MODE: tl.constexpr,
):
    """One program decides ``BLOCK_T`` tokens; rule.py says the same in torch."""
    call = tl.load(clock) + 1
    one = tl.full((), 1, tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.arange(0, BLOCK_K)
    row = tl.load(rows_T + token, mask=token < n_tokens, other=-1)
    counted = row >= 0
    real = counted[:, None] & (slot < K)[None, :]
    place = token.to(tl.int64)[:, None] * K + slot[None, :]
    weight = tl.load(weights_TK + place, mask=real, other=0.0).to(tl.float32)
    expert = tl.load(ids_TK + place, mask=real, other=0).to(tl.int32)
    # A masked lane must not read past the table either.
    row = row & _ROW_BITS
    beta = tl.load(betas_R + row, mask=counted & (row < n_rows), other=0.0)

    broken = real & ~(tl.abs(weight) <= _LARGEST)
    nonfinite = tl.max(broken.to(tl.int32), axis=1) > 0
    weight = tl.where(nonfinite[:, None], 0.0, weight)
    ranked = tl.where(real, weight, -_LARGEST)
    top = tl.max(ranked, axis=1)
    keep = (weight >= (beta * top)[:, None]) | (weight == top[:, None]) | nonfinite[:, None]
    drop = real & ~keep
    keep = real & keep
    changed = tl.max(drop.to(tl.int32), axis=1) > 0
    total = tl.sum(weight, axis=1)
    kept = tl.sum(tl.where(keep, weight, 0.0), axis=1)

    # A token that loses nothing is not written: level 0 is exact to the bit.
    if RENORMALIZE:
        scale = tl.where(changed & (kept != 0.0), total / tl.where(kept != 0.0, kept, 1.0), 1.0)
        written = tl.where(keep, weight * scale[:, None], 0.0)
        tl.store(
            weights_TK + place,
            written.to(weights_TK.dtype.element_ty),
            mask=real & changed[:, None],
        )
    else:
        nothing = tl.zeros_like(weight).to(weights_TK.dtype.element_ty)
        tl.store(weights_TK + place, nothing, mask=drop)
    if MODE == 0:
        gone = tl.full((BLOCK_T, BLOCK_K), -1, tl.int32)
        tl.store(ids_TK + place, gone.to(ids_TK.dtype.element_ty), mask=drop)
    if MODE == 1:
        first = tl.min(tl.where(real & (weight == top[:, None]), slot[None, :], BLOCK_K), axis=1)
        chosen = real & (slot[None, :] == first[:, None])
        best = tl.max(tl.where(chosen, expert, -1), axis=1)
        instead = tl.broadcast_to(best[:, None], (BLOCK_T, BLOCK_K))
        tl.store(ids_TK + place, instead.to(ids_TK.dtype.element_ty), mask=drop)

    # In mode zero the weights of a skipped expert are read all the same.
    read = real if MODE == 2 else keep
    read = read & (expert >= 0) & (expert < n_experts)
    mark = seen_E + tl.where(read, expert, 0)
    # Most tokens find their experts marked: a plain look spares the atomic operation.
    unmarked = read & (tl.load(mark, mask=read, other=0) < call)
    before = tl.atomic_max(mark, tl.zeros_like(place) + call, mask=unmarked)
    distinct = tl.sum((unmarked & (before < call)).to(tl.int64))
    tokens = tl.sum(counted.to(tl.int64))
    skipped = tl.sum(drop.to(tl.int64))
    strange = tl.sum((counted & nonfinite).to(tl.int64))
    whole = tl.where(total != 0.0, total, 1.0).to(tl.float64)
    lost = tl.sum(tl.where(drop, weight, 0.0), axis=1).to(tl.float64)
    lost_mass = tl.sum(lost / whole)
    if tokens > 0:
        tl.atomic_add(counts, tokens)
        if tl.atomic_max(seen_E + n_experts, call) < call:
            tl.atomic_add(counts + 3, one)
    if skipped > 0:
        tl.atomic_add(counts + 1, skipped)
        tl.atomic_add(mass, lost_mass)
    if strange > 0:
        tl.atomic_add(counts + 2, strange)
    if distinct > 0:
        tl.atomic_add(counts + 4, distinct)

    # Whoever is through last moves the clock: all others have read it by then.
    tl.debug_barrier()
    if tl.atomic_add(clock + 1, one) == tl.num_programs(0) - 1:
        tl.store(clock, call)
        tl.store(clock + 1, one - one)


def skip(
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    rows_T: torch.Tensor,
    table: DeviceTable,
    *,
    renormalize: bool,
    mode: SkipMode,
) -> None:
    """Decide and count one call of a layer; ``weights_TK`` and ``ids_TK`` change in place.

    Both contiguous. ``rows_T`` is int32: a row of the table, below 0 for a token that keeps
    everything and is not counted, as do tokens past its end. Nothing here waits for the device.
    """
    tokens, top_k = weights_TK.shape
    if not tokens:
        return
    _skip[(triton.cdiv(tokens, _BLOCK_T),)](
        weights_TK,
        ids_TK,
        table.betas_R,
        rows_T,
        table.counts,
        table.mass,
        table.clock,
        table.seen_E,
        min(tokens, len(rows_T)),
        len(table.betas_R),
        len(table.seen_E) - 1,
        K=top_k,
        BLOCK_K=triton.next_power_of_2(top_k),
        BLOCK_T=_BLOCK_T,
        RENORMALIZE=renormalize,
        MODE=_MODES[mode],
    )
