"""The skip rule behind a router whose own launch cannot take it along: one small launch more.

T tokens of a program, K slots of a token (padded), E experts, W words of 32 experts.
"""

# Triton reads the functions' names and types itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl

from leanmoe_runtime.device.rule_kernel import (
    count,
    harvest,
    kept_slots,
    rows_and_betas,
    scaled,
)


@triton.jit(do_not_specialize=["n_tokens"])
def decide_kernel(
    weights_TK,
    ids_TK,
    betas_R,
    factors_E,
    rows_T,
    skipped_T,
    counts,
    seen_W,
    earlier_counts,
    earlier_seen_W,
    n_tokens,
    n_rows,
    n_earlier_words,
    n_experts,
    T: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EARLIER_W: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    MODE: tl.constexpr,
):
    """One program decides T tokens in place."""
    if tl.program_id(0) == 0:
        harvest(earlier_seen_W, earlier_counts, n_earlier_words, EARLIER_W)
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    slot_K = tl.arange(0, BLOCK_K)
    _, counted_T, beta_T = rows_and_betas(betas_R, rows_T, n_rows, token_T, n_tokens)
    real_TK = counted_T[:, None] & (slot_K < K)[None, :]
    place_TK = token_T.to(tl.int64)[:, None] * K + slot_K[None, :]
    weight_TK = tl.load(weights_TK + place_TK, mask=real_TK, other=0.0).to(tl.float32)
    expert_TK = tl.load(ids_TK + place_TK, mask=real_TK, other=0).to(tl.int32)
    given_TK, keep_TK, broken_T, first_TK = kept_slots(
        weight_TK, expert_TK, real_TK, beta_T, factors_E, n_experts, slot_K, K
    )
    skipped_TK = real_TK & ~keep_TK
    changed_T = tl.max(skipped_TK.to(tl.int32), axis=1) > 0
    # A token that loses nothing is not written: level 0 is exact to the bit.
    written_TK = scaled(given_TK, given_TK, keep_TK, RENORMALIZE)
    tl.store(
        weights_TK + place_TK,
        written_TK.to(weights_TK.dtype.element_ty),
        mask=real_TK & changed_T[:, None],
    )
    if MODE == 0:
        gone_TK = tl.full([T, BLOCK_K], -1, tl.int32)
        tl.store(ids_TK + place_TK, gone_TK.to(ids_TK.dtype.element_ty), mask=skipped_TK)
    if MODE == 1:
        best_T = tl.max(tl.where(first_TK, expert_TK, -1), axis=1)
        instead_TK = tl.broadcast_to(best_T[:, None], [T, BLOCK_K])
        tl.store(ids_TK + place_TK, instead_TK.to(ids_TK.dtype.element_ty), mask=skipped_TK)
    # In mode zero the weights of a skipped expert are read all the same.
    read_TK = real_TK if MODE == 2 else keep_TK
    nothing = tl.zeros([], tl.int64)
    count(
        counts, seen_W, token_T, skipped_T, expert_TK, read_TK, given_TK, skipped_TK, counted_T,
        broken_T, nothing, n_experts, T, BLOCK_K, BLOCK_W,
    )  # fmt: skip


@triton.jit
def harvest_kernel(seen_W, counts, n_words, BLOCK_W: tl.constexpr):
    """``harvest`` by itself: where a model has one MoE layer, no other layer's launch does it."""
    harvest(seen_W, counts, n_words, BLOCK_W)
