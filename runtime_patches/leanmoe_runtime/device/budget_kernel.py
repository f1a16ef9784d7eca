"""The budget on distinct experts of a step: two launches behind the router's.

The first adds up what each expert weighs and marks those that no budget may leave out (every
token's top expert, all experts of tokens that opted out); the second fills the budget with the
heaviest of the others and decides each token by it. ``skip/cpu.c`` has the same rules.
Weights are added up as whole numbers, so that the choice depends on no order of additions, and
every program of the second launch makes the same choice for itself: nobody waits for another.

T tokens of a program, K slots of a token (padded), E experts (padded), W words of 32 experts.
"""

# Triton reads the functions' names and types itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from leanmoe_runtime.device.rule_kernel import (
    bits_of,
    count,
    factors_of,
    harvest,
    kept_slots,
    key_column,
    keys_where,
    order_key,
    rows_and_betas,
    scaled,
)
from leanmoe_runtime.device.table import MASS_ONE
from leanmoe_runtime.state import MANDATORY

_MASS_ONE = tl.constexpr(float(MASS_ONE))
_MANDATORY = tl.constexpr(MANDATORY)
_AT_ONCE = tl.constexpr(16)


@triton.jit
def _routed(weights_TK, ids_TK, real_TK, place_TK):
    """What the router chose. Ids below 0 are padding that the router has left out by itself."""
    weight_TK = tl.load(weights_TK + place_TK, mask=real_TK, other=0.0).to(tl.float32)
    expert_TK = tl.load(ids_TK + place_TK, mask=real_TK, other=-1).to(tl.int32)
    return weight_TK, expert_TK, real_TK & (expert_TK >= 0)


@triton.jit(do_not_specialize=["n_tokens"])
def weigh_kernel(
    weights_TK,
    ids_TK,
    betas_R,
    factors_E,
    rows_T,
    mass_E,
    bound_W,
    earlier_counts,
    earlier_seen_W,
    earlier_mass_E,
    earlier_bound_W,
    n_tokens,
    n_rows,
    n_experts,
    n_earlier_words,
    n_earlier_experts,
    T: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EARLIER_W: tl.constexpr,
    EARLIER_E: tl.constexpr,
):
    """One program weighs the experts of T tokens; the first forgets an earlier layer's weights."""
    if tl.program_id(0) == 0:
        harvest(earlier_seen_W, earlier_counts, n_earlier_words, EARLIER_W)
        expert_E, word_W = tl.arange(0, EARLIER_E), tl.arange(0, EARLIER_W)
        zero_E, zero_W = tl.zeros([EARLIER_E], tl.int64), tl.zeros([EARLIER_W], tl.int32)
        tl.store(earlier_mass_E + expert_E, zero_E, mask=expert_E < n_earlier_experts)
        tl.store(earlier_bound_W + word_W, zero_W, mask=word_W < n_earlier_words)
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    slot_K = tl.arange(0, BLOCK_K)
    row_T, counted_T, beta_T = rows_and_betas(betas_R, rows_T, n_rows, token_T, n_tokens)
    asked_TK = counted_T[:, None] & (slot_K < K)[None, :]
    place_TK = token_T.to(tl.int64)[:, None] * K + slot_K[None, :]
    weight_TK, expert_TK, real_TK = _routed(weights_TK, ids_TK, asked_TK, place_TK)
    given_TK, keep_TK, broken_T, first_TK = kept_slots(
        weight_TK, expert_TK, real_TK, beta_T, factors_E, n_experts, slot_K, K
    )
    heavy_TK = (given_TK * _MASS_ONE).to(tl.int64)
    tl.atomic_add(mass_E + expert_TK, heavy_TK, mask=keep_TK & (heavy_TK > 0), sem="relaxed")
    opted_out_T = ((row_T & _MANDATORY) != 0) | broken_T
    bound_N = tl.reshape(keep_TK & (first_TK | opted_out_T[:, None]), [T * BLOCK_K])
    bits_W = bits_of(tl.reshape(expert_TK, [T * BLOCK_K]), bound_N, BLOCK_W)
    tl.atomic_or(bound_W + tl.arange(0, BLOCK_W), bits_W, mask=bits_W != 0, sem="relaxed")


@triton.jit
def _bound(bound_W, expert, n_experts):
    """Whether no budget may leave the experts out."""
    inside = expert < n_experts
    word = tl.load(bound_W + (expert >> 5), mask=inside, other=0)
    return inside & (((word >> (expert & 31)) & 1) != 0)


@triton.jit
def _loaded(mass_E, bound_W, budget, n_experts, E: tl.constexpr):
    """Marks [E] the experts that the step may read: the bound ones, then the heaviest."""
    expert_E = tl.arange(0, E)
    heavy_E = tl.load(mass_E + expert_E, mask=expert_E < n_experts, other=0)
    bound_E = _bound(bound_W, expert_E, n_experts)
    free = budget - tl.sum(bound_E.to(tl.int32))
    rank_E = tl.zeros([E], tl.int32)
    for start in range(0, n_experts, _AT_ONCE):
        other_A = start + tl.arange(0, _AT_ONCE)
        mass_A = tl.load(mass_E + other_A, mask=other_A < n_experts, other=0)
        # Bound experts take part in no ranking.
        mass_A = tl.where(_bound(bound_W, other_A, n_experts), 0, mass_A)
        first_EA = (mass_A[None, :] == heavy_E[:, None]) & (other_A[None, :] < expert_E[:, None])
        ahead_EA = (mass_A[None, :] > heavy_E[:, None]) | first_EA
        rank_E += tl.sum((ahead_EA & (mass_A > 0)[None, :]).to(tl.int32), axis=1)
    return bound_E | ((heavy_E > 0) & (rank_E < free)) | ((budget <= 0) & (expert_E < n_experts))


@triton.jit
def _at(value_TE, expert_T, expert_E):
    """The value [T] of one expert of each token."""
    return tl.sum(tl.where(expert_E[None, :] == expert_T[:, None], value_TE, 0.0), axis=1)


@triton.jit
def _move(
    logits_TE,
    union,
    token_T,
    weight_TK,
    expert_TK,
    keep_TK,
    lost_TK,
    loaded_E,
    same_TKE,
    counted_T,
    best_T,
    top_T,
    beta_T,
    factors_E,
    slot_K,
    expert_E,
    n_experts,
    T: tl.constexpr,
    K: tl.constexpr,
):
    """Give lost assignments to the best-scored loaded experts that their token has not yet.

    Each at the weight that the router gives it, as long as the skip rule would keep that. The
    static rule does: a moved assignment takes a place that it keeps.
    """
    moved_T = tl.zeros([T], tl.int32)
    by_norm_T = beta_T < 0.0
    best_factor_T = factors_of(factors_E, best_T, n_experts, by_norm_T)
    least_T = tl.where(beta_T > 1.0, 0.0, tl.abs(beta_T) * best_factor_T)
    if tl.load(union + 1) != 0:
        inside_TE = counted_T[:, None] & (expert_E < n_experts)[None, :]
        at_TE = token_T.to(tl.int64)[:, None] * n_experts + expert_E[None, :]
        logit_TE = tl.load(logits_TE + at_TE, mask=inside_TE, other=0.0).to(tl.float32)
        top_logit_T = _at(logit_TE, best_T, expert_E)
        taken_TE = tl.max((same_TKE & keep_TK[:, :, None]).to(tl.int32), axis=1)
        for slot in tl.static_range(K):
            here_TK = slot_K[None, :] == slot
            asks_T = tl.max((lost_TK & here_TK).to(tl.int32), axis=1) > 0
            free_TE = inside_TE & loaded_E[None, :] & (taken_TE == 0)
            key_TE = keys_where(free_TE, order_key(logit_TE, expert_E[None, :]))
            key_T = tl.max(key_TE, axis=1)
            other_T = key_column(key_T)
            found_T = tl.max(free_TE.to(tl.int32), axis=1) > 0
            ratio_T = tl.exp(_at(logit_TE, other_T, expert_E) - top_logit_T)
            judged_T = ratio_T * factors_of(factors_E, other_T, n_experts, by_norm_T & found_T)
            moves_T = asks_T & found_T & (ratio_T > 0.0) & (judged_T >= least_T)
            moves_TK = here_TK & moves_T[:, None]
            weight_TK = tl.where(moves_TK, (ratio_T * top_T)[:, None], weight_TK)
            expert_TK = tl.where(moves_TK, other_T[:, None], expert_TK)
            keep_TK = keep_TK | moves_TK
            won_TE = moves_T[:, None] & (expert_E[None, :] == other_T[:, None])
            taken_TE = tl.where(won_TE, 1, taken_TE)
            moved_T += moves_T.to(tl.int32)
    return weight_TK, expert_TK, keep_TK, moved_T


@triton.jit(do_not_specialize=["n_tokens"])
def spend_kernel(
    weights_TK,
    ids_TK,
    logits_TE,
    betas_R,
    factors_E,
    rows_T,
    skipped_T,
    counts,
    seen_W,
    mass_E,
    bound_W,
    union,
    n_tokens,
    n_rows,
    n_experts,
    T: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    E: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    MODE: tl.constexpr,
    CAN_MOVE: tl.constexpr,
):
    """One program decides T tokens in place. ``union`` holds the budget and whether it moves."""
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    slot_K, expert_E = tl.arange(0, BLOCK_K), tl.arange(0, E)
    row_T, counted_T, beta_T = rows_and_betas(betas_R, rows_T, n_rows, token_T, n_tokens)
    asked_TK = counted_T[:, None] & (slot_K < K)[None, :]
    place_TK = token_T.to(tl.int64)[:, None] * K + slot_K[None, :]
    weight_TK, expert_TK, real_TK = _routed(weights_TK, ids_TK, asked_TK, place_TK)
    given_TK, keep_TK, broken_T, first_TK = kept_slots(
        weight_TK, expert_TK, real_TK, beta_T, factors_E, n_experts, slot_K, K
    )
    best_T = tl.max(tl.where(first_TK, expert_TK, -1), axis=1)
    top_T = tl.sum(tl.where(first_TK, given_TK, 0.0), axis=1)
    opted_out_T = ((row_T & _MANDATORY) != 0) | broken_T

    loaded_E = _loaded(mass_E, bound_W, tl.load(union), n_experts, E)
    same_TKE = expert_TK[:, :, None] == expert_E[None, None, :]
    has_TK = tl.max((same_TKE & loaded_E[None, None, :]).to(tl.int32), axis=2) > 0
    lost_TK = keep_TK & ~has_TK & ~opted_out_T[:, None]
    keep_TK = keep_TK & ~lost_TK
    weight_TK = given_TK
    moved_T = tl.zeros([T], tl.int32)
    if CAN_MOVE:
        weight_TK, expert_TK, keep_TK, moved_T = _move(
            logits_TE, union, token_T, weight_TK, expert_TK, keep_TK, lost_TK, loaded_E, same_TKE,
            counted_T, best_T, top_T, beta_T, factors_E, slot_K, expert_E, n_experts, T, K,
        )  # fmt: skip

    skipped_TK = real_TK & ~keep_TK
    changed_T = (tl.max(skipped_TK.to(tl.int32), axis=1) > 0) | (moved_T > 0)
    written_TK = scaled(weight_TK, given_TK, keep_TK, RENORMALIZE)
    changed_TK = real_TK & changed_T[:, None]
    tl.store(weights_TK + place_TK, written_TK.to(weights_TK.dtype.element_ty), mask=changed_TK)
    id_TK = expert_TK
    if MODE == 0:
        id_TK = tl.where(skipped_TK, -1, id_TK)
    if MODE == 1:
        id_TK = tl.where(skipped_TK, best_T[:, None], id_TK)
    tl.store(ids_TK + place_TK, id_TK.to(ids_TK.dtype.element_ty), mask=changed_TK)
    # In mode zero the weights of a skipped expert are read all the same.
    read_TK = real_TK if MODE == 2 else keep_TK
    count(
        counts, seen_W, token_T, skipped_T, expert_TK, read_TK, given_TK, skipped_TK, counted_T,
        broken_T, tl.sum(moved_T.to(tl.int64)), n_experts, T, BLOCK_K, BLOCK_W,
    )  # fmt: skip


@triton.jit
def forget_kernel(mass_E, bound_W, n_experts, n_words, E: tl.constexpr, BLOCK_W: tl.constexpr):
    """Empty a layer's own scales: where a model has one MoE layer, no other layer's launch does."""
    expert_E, word_W = tl.arange(0, E), tl.arange(0, BLOCK_W)
    tl.store(mass_E + expert_E, tl.zeros([E], tl.int64), mask=expert_E < n_experts)
    tl.store(bound_W + word_W, tl.zeros([BLOCK_W], tl.int32), mask=word_W < n_words)
