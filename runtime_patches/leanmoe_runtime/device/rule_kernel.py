"""The skip rules and their counting as Triton functions, for every kernel that decides.

``skip/rule.py`` tells the same plainly. T tokens of a program, K slots of a token (padded to a
power of two), E experts, W words of 32 experts each.
"""

# Triton reads the functions' names and types itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl

from leanmoe_runtime.device.table import (
    DISTINCT,
    MASS,
    MASS_ONE,
    NONFINITE,
    SKIPPED,
    STEPS,
    SUBSTITUTED,
    TOKENS,
)
from leanmoe_runtime.skip.rule import ROW_BITS

_ROW_BITS = tl.constexpr(ROW_BITS)
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_TOKENS, _SKIPPED = tl.constexpr(TOKENS), tl.constexpr(SKIPPED)
_NONFINITE, _STEPS = tl.constexpr(NONFINITE), tl.constexpr(STEPS)
_DISTINCT, _MASS = tl.constexpr(DISTINCT), tl.constexpr(MASS)
_SUBSTITUTED = tl.constexpr(SUBSTITUTED)
_MASS_ONE = tl.constexpr(float(MASS_ONE))


@triton.jit
def rows_and_betas(betas_R, rows_T, n_rows, token_T, n_tokens):
    """Each token's row of the step, -1 for nobody's, and its threshold."""
    row_T = tl.load(rows_T + token_T, mask=token_T < n_tokens, other=-1)
    counted_T = row_T >= 0
    # A masked lane must not read past the table either.
    place_T = row_T & _ROW_BITS
    beta_T = tl.load(betas_R + place_T, mask=counted_T & (place_T < n_rows), other=0.0)
    return row_T, counted_T, beta_T


@triton.jit
def factors_of(factors_E, expert, n_experts, asked):
    """Factors of experts where they are asked for, 1 elsewhere; nothing is read there."""
    inside = asked & (expert >= 0) & (expert < n_experts)
    return tl.load(factors_E + expert, mask=inside, other=1.0)


@triton.jit
def _among_largest(weight_TK, real_TK, kept_T, slot_K, K: tl.constexpr):
    """Marks the so many largest weights of each token; of equals, the first slot comes first."""
    before_TK = tl.zeros(weight_TK.shape, tl.int32)
    for slot in tl.static_range(K):
        here_TK = real_TK & (slot_K[None, :] == slot)
        other_T = tl.max(tl.where(here_TK, weight_TK, -_LARGEST), axis=1)
        first_TK = (other_T[:, None] == weight_TK) & (slot < slot_K[None, :])
        before_TK += ((other_T[:, None] > weight_TK) | first_TK).to(tl.int32)
    return before_TK < kept_T[:, None]


@triton.jit
def kept_slots(
    weight_TK, expert_TK, real_TK, beta_T, factors_E, n_experts, slot_K, K: tl.constexpr
):
    """Weights with broken ones at 0, the slots that stay, which tokens are broken, the best slots.

    A token whose weights are no numbers keeps everything. Best is the first of the largest by
    what the token's rule judges by. At level 0 no factor is read and no slot is ranked.
    """
    broken_TK = real_TK & ~(tl.abs(weight_TK) <= _LARGEST)
    broken_T = tl.max(broken_TK.to(tl.int32), axis=1) > 0
    weight_TK = tl.where(real_TK & ~broken_T[:, None], weight_TK, 0.0)
    asked_TK = real_TK & (beta_T < 0.0)[:, None]
    score_TK = weight_TK * factors_of(factors_E, expert_TK, n_experts, asked_TK)
    top_T = tl.max(tl.where(real_TK, score_TK, -_LARGEST), axis=1)
    reaches_TK = score_TK >= (tl.abs(beta_T) * top_T)[:, None]
    keep_TK = reaches_TK | (score_TK == top_T[:, None])
    static_T = beta_T > 1.0
    if tl.max(static_T.to(tl.int32), axis=0) > 0:
        among_TK = _among_largest(weight_TK, real_TK, beta_T - 1.0, slot_K, K)
        keep_TK = tl.where(static_T[:, None], among_TK, keep_TK)
    first_TK = first_of_largest(score_TK, real_TK, top_T, slot_K)
    return weight_TK, real_TK & (keep_TK | broken_T[:, None]), broken_T, first_TK


@triton.jit
def scaled(weight_TK, given_TK, keep_TK, RENORMALIZE: tl.constexpr):
    """What is kept, each token's sum as it was where the router renormalises.

    ``given_TK`` are the router's own weights, whose sum stays.
    """
    kept_TK = tl.where(keep_TK, weight_TK, 0.0)
    if RENORMALIZE:
        total_T = tl.sum(given_TK, axis=1)
        kept_T = tl.sum(kept_TK, axis=1)
        scale_T = tl.where(kept_T != 0.0, total_T / tl.where(kept_T != 0.0, kept_T, 1.0), 1.0)
        kept_TK = kept_TK * scale_T[:, None]
    return kept_TK


@triton.jit
def first_of_largest(score_TK, real_TK, top_T, slot_K):
    """Marks the first slot of each token's largest score."""
    largest_TK = real_TK & (score_TK == top_T[:, None])
    first_T = tl.min(tl.where(largest_TK, slot_K[None, :], score_TK.shape[1]), axis=1)
    return real_TK & (slot_K[None, :] == first_T[:, None])


@triton.jit
def order_key(choice, column):
    """Orders by value, then by the smaller column: one signed integer of both."""
    bits = choice.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    return (ordered << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def key_value(key):
    """The value that a key orders by."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_column(key):
    """The column that a key is of."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def keys_where(mask, key):
    """The masked keys; any other is smaller than every key."""
    return tl.where(mask, key, tl.full(key.shape, -(1 << 63), tl.int64))


@triton.jit
def _either(left, right):
    return left | right


@triton.jit
def bits_of(expert_N, marked_N, BLOCK_W: tl.constexpr):
    """The marked experts as bits: [W] words of int32."""
    word_W = tl.arange(0, BLOCK_W)
    bit_N = (tl.full(expert_N.shape, 1, tl.int32)) << (expert_N & 31)
    here_NW = marked_N[:, None] & ((expert_N >> 5)[:, None] == word_W[None, :])
    return tl.reduce(tl.where(here_NW, bit_N[:, None], 0), 0, _either)


@triton.jit
def bits_set(word_W):
    """How many bits of the words are set."""
    x = word_W.to(tl.int64) & 0xFFFFFFFF
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return tl.sum(((x * 0x01010101) >> 24) & 0xFF)


@triton.jit
def harvest(seen_W, counts, n_words, BLOCK_W: tl.constexpr):
    """Count the experts that an earlier launch has read, and forget them.

    Launches of one stream follow each other, so nobody marks them any more. Counting them here
    costs no program a wait for all the others.
    """
    word_W = tl.arange(0, BLOCK_W)
    there_W = word_W < n_words
    found_W = tl.load(seen_W + word_W, mask=there_W, other=0)
    found = bits_set(found_W)
    if found > 0:
        tl.atomic_add(counts + _DISTINCT, found, sem="relaxed")
        tl.store(seen_W + word_W, tl.zeros_like(found_W), mask=there_W)


@triton.jit
def count(
    counts,
    seen_W,
    token_T,
    skipped_T,
    expert_TK,
    read_TK,
    given_TK,
    skipped_TK,
    counted_T,
    broken_T,
    substituted,
    n_experts,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Add a program's tokens to the layer's counters: one atomic operation for all of them.

    ``skipped_T`` adds up each token's over the layers: launches follow each other, and in each one
    program has a token. ``read_TK`` marks the experts whose weights are read, ``given_TK`` the
    router's weights.
    """
    gone_T = tl.sum(skipped_TK.to(tl.int32), axis=1)
    before_T = tl.load(skipped_T + token_T, mask=gone_T > 0, other=0)
    tl.store(skipped_T + token_T, before_T + gone_T, mask=gone_T > 0)
    total_T = tl.sum(given_TK, axis=1)
    lost_T = tl.sum(tl.where(skipped_TK, given_TK, 0.0), axis=1)
    share_T = tl.where(total_T != 0.0, lost_T / tl.where(total_T != 0.0, total_T, 1.0), 0.0)
    mass = tl.sum((share_T * _MASS_ONE + 0.5).to(tl.int64) * counted_T.to(tl.int64))
    tokens = tl.sum(counted_T.to(tl.int64))
    # A step's real tokens come first, so the first one says whether there are any.
    steps = ((tl.program_id(0) == 0) & (tokens > 0)).to(tl.int64)
    place = tl.arange(0, 8)
    value = tl.where(place == _TOKENS, tokens, 0)
    value = tl.where(place == _STEPS, steps, value)
    value = tl.where(place == _SKIPPED, tl.sum(gone_T.to(tl.int64)), value)
    value = tl.where(place == _NONFINITE, tl.sum((counted_T & broken_T).to(tl.int64)), value)
    value = tl.where(place == _MASS, mass, value)
    value = tl.where(place == _SUBSTITUTED, substituted, value)
    tl.atomic_add(counts + place, value, mask=value != 0, sem="relaxed")
    marked_TK = read_TK & (expert_TK >= 0) & (expert_TK < n_experts)
    expert_N = tl.reshape(expert_TK, [BLOCK_T * BLOCK_K])
    bits_W = bits_of(expert_N, tl.reshape(marked_TK, [BLOCK_T * BLOCK_K]), BLOCK_W)
    tl.atomic_or(seen_W + tl.arange(0, BLOCK_W), bits_W, mask=bits_W != 0, sem="relaxed")
