"""One launch from router logits to decided experts: scores, top-k, skip rule, counts, blocks.

The scores and their order of addition are those of vLLM's own kernels, so that a token that loses
nothing gets stock's weights to the bit: ``csrc/moe/topk_softmax_kernels.cu`` (``topkGating`` where
a warp holds a row, ``moeSoftmax`` and ``moeTopK`` elsewhere) and, for groups,
``csrc/moe/grouped_topk_kernels.cu``. Only additions of two values depend on no compiler's choice,
so sums are spelt out as trees of pairs.

T tokens of a program, H threads of stock's that share a row, V values of each, E experts, K slots
(padded), G groups, W words of 32 experts, N assignments of a program, M rows of a block.
"""

# Triton reads the functions' names and types itself.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, misc"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from leanmoe_runtime.device.rule_kernel import (
    count,
    harvest,
    kept_slots,
    key_column,
    key_value,
    keys_where,
    order_key,
    rows_and_betas,
    scaled,
)

SOFTMAX, SIGMOID, TANH_SIGMOID = 0, 1, 2
_SOFTMAX, _SIGMOID = tl.constexpr(SOFTMAX), tl.constexpr(SIGMOID)
_WARP = tl.constexpr(32)


@triton.jit
def _exp(x, DEVICE_MATH: tl.constexpr):
    return libdevice.exp(x) if DEVICE_MATH else tl.exp(x)


@triton.jit
def _fast_exp(x, DEVICE_MATH: tl.constexpr):
    return libdevice.fast_expf(x) if DEVICE_MATH else tl.exp(x)


@triton.jit
def _tanh(x, DEVICE_MATH: tl.constexpr):
    return libdevice.tanh(x) if DEVICE_MATH else 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def halves_sum(x_TH, T: tl.constexpr, H: tl.constexpr, LEVELS: tl.constexpr):
    """Sum over the last axis as a butterfly of lanes adds: the far half first."""
    for level in tl.static_range(LEVELS):
        x_TH = tl.sum(tl.reshape(x_TH, [T, 2, H >> (level + 1)]), axis=1)
    return tl.reshape(x_TH, [T])


@triton.jit
def block_sum(x_TE, T: tl.constexpr, E: tl.constexpr):
    """Sum over the last axis as CUB's block reduction adds: neighbours in a warp, then warps."""
    x = x_TE
    for level in tl.static_range(5):
        x = tl.sum(tl.reshape(x, [T, E >> (level + 1), 2]), axis=2)
    warp = tl.arange(0, E // _WARP)[None, :]
    total_T = tl.sum(tl.where(warp == 0, x, 0.0), axis=1)
    for one in tl.static_range(1, E // _WARP):
        total_T = total_T + tl.sum(tl.where(warp == one, x, 0.0), axis=1)
    return total_T


@triton.jit
def _sound(x):
    """Numbers as they are, what is none as 0, as stock has it against equal ids."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _columns(value: tl.constexpr, H: tl.constexpr, PER_LOAD: tl.constexpr):
    """Columns [H] of each thread's value of that number."""
    load: tl.constexpr = value // PER_LOAD
    return load * H * PER_LOAD + tl.arange(0, H) * PER_LOAD + value % PER_LOAD


@triton.jit
def _scores(
    logits,
    token_T,
    there_T,
    n_experts: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    LEVELS: tl.constexpr,
    V: tl.constexpr,
    PER_LOAD: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    SCORING: tl.constexpr,
    DEVICE_MATH: tl.constexpr,
):
    """A tuple of V score vectors [T, H]."""
    loaded = ()
    for value in tl.static_range(V):
        column_H = _columns(value, H, PER_LOAD)
        inside_TH = there_T[:, None] & (column_H < n_experts)[None, :]
        place_TH = token_T.to(tl.int64)[:, None] * n_experts + column_H[None, :]
        loaded += (tl.load(logits + place_TH, mask=inside_TH, other=float("-inf")).to(tl.float32),)
    found = ()
    if SCORING == _SOFTMAX:
        # A largest value has no order: the values of a thread first, then one exchange.
        most_TH = loaded[0]
        for value in tl.static_range(1, V):
            most_TH = tl.maximum(most_TH, loaded[value])
        top_T = tl.max(most_TH, axis=1)
        raised = ()
        sum_TH = tl.zeros([T, H], tl.float32)
        for value in tl.static_range(V):
            raised += (_exp(loaded[value] - top_T[:, None], DEVICE_MATH),)
            sum_TH = sum_TH + raised[value]
        sum_T = block_sum(sum_TH, T, H) if BY_BLOCK else halves_sum(sum_TH, T, H, LEVELS)
        share_T = tl.div_rn(tl.full([T], 1.0, tl.float32), sum_T)
        for value in tl.static_range(V):
            found += (_sound(raised[value] * share_T[:, None]),)
    else:
        for value in tl.static_range(V):
            if SCORING == _SIGMOID:
                below = 1.0 + _fast_exp(-loaded[value], DEVICE_MATH)
                found += (_sound(tl.div_rn(tl.full([T, H], 1.0, tl.float32), below)),)
            else:
                half = _tanh(0.5 * loaded[value], DEVICE_MATH)
                found += (tl.fma(half, 0.5, 0.5),)
    return found


@triton.jit
def _best_groups(choice_TE, T: tl.constexpr, E: tl.constexpr, G: tl.constexpr, KEPT: tl.constexpr):
    """Marks [T, E] the experts of the groups whose two best scores add up to most."""
    S: tl.constexpr = E // G
    key_TGS = order_key(tl.reshape(choice_TE, [T, G, S]), tl.arange(0, S)[None, None, :])
    first_TG = tl.max(key_TGS, axis=2)
    second_TG = tl.max(keys_where(key_TGS != first_TG[:, :, None], key_TGS), axis=2)
    key_TG = order_key(key_value(first_TG) + key_value(second_TG), tl.arange(0, G)[None, :])
    chosen_TG = tl.zeros([T, G], tl.int32)
    for _ in tl.static_range(KEPT):
        best_T = tl.max(key_TG, axis=1)
        taken_TG = key_TG == best_T[:, None]
        chosen_TG = tl.where(taken_TG, 1, chosen_TG)
        key_TG = keys_where(~taken_TG, key_TG)
    return tl.reshape(tl.broadcast_to(chosen_TG[:, :, None], [T, G, S]), [T, E]) > 0


@triton.jit
def _top_k(
    scores,
    bias_E,
    slot_K,
    n_experts: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    PER_LOAD: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    G: tl.constexpr,
    KEPT_G: tl.constexpr,
):
    """Scores and experts of the K best, [T, K] each, and the scores' sum in their order."""
    keys = ()
    for value in tl.static_range(V):
        column_H = _columns(value, H, PER_LOAD)
        inside_H = column_H < n_experts
        choice_TH = scores[value]
        if HAS_BIAS:
            bias_H = tl.load(bias_E + column_H, mask=inside_H, other=0.0).to(tl.float32)
            choice_TH = choice_TH + bias_H[None, :]
        key_TH = keys_where(inside_H[None, :], order_key(choice_TH, column_H[None, :]))
        if G > 1:
            key_TH = keys_where(_best_groups(choice_TH, T, H, G, KEPT_G), key_TH)
        keys += (key_TH,)
    # Kept as keys: one change of layout for both halves.
    key_TK = tl.zeros([T, BLOCK_K], tl.int64)
    biased_TK = tl.zeros([T, BLOCK_K], tl.float32)
    sum_T = tl.zeros([T], tl.float32)
    for slot in tl.static_range(K):
        most_TH = keys[0]
        for value in tl.static_range(1, V):
            most_TH = tl.maximum(most_TH, keys[value])
        best_T = tl.max(most_TH, axis=1)
        key_TK = tl.where(slot_K[None, :] == slot, best_T[:, None], key_TK)
        if HAS_BIAS:
            score_T = tl.zeros([T], tl.float32)
            for value in tl.static_range(V):
                won_TH = keys[value] == best_T[:, None]
                score_T += tl.sum(tl.where(won_TH, scores[value], 0.0), axis=1)
            biased_TK = tl.where(slot_K[None, :] == slot, score_T[:, None], biased_TK)
        else:
            score_T = key_value(best_T)
        sum_T = sum_T + score_T
        left = ()
        for value in tl.static_range(V):
            left += (keys_where(keys[value] != best_T[:, None], keys[value]),)
        keys = left
    weight_TK = biased_TK if HAS_BIAS else key_value(key_TK)
    expert_TK = tl.where(slot_K[None, :] < K, key_column(key_TK), 0)
    return weight_TK, expert_TK, sum_T


@triton.jit
def _weights(
    score_TK,
    sum_T,
    T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_LEVELS: tl.constexpr,
    GROUPED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Routing weights of the chosen scores, in stock's order of operations."""
    if GROUPED:
        weight_TK = score_TK * SCALE
        if RENORMALIZE:
            sum_T = halves_sum(score_TK, T, BLOCK_K, K_LEVELS)
            weight_TK = tl.div_rn(weight_TK, tl.broadcast_to(sum_T[:, None], [T, BLOCK_K]))
    else:
        scale_T = tl.full([T], SCALE, tl.float32)
        if RENORMALIZE:
            scale_T = tl.div_rn(scale_T, tl.where(sum_T > 0.0, sum_T, 1.0))
        weight_TK = score_TK * scale_T[:, None]
    return weight_TK


@triton.jit
def _blocks(
    expert_TK,
    computed_TK,
    sorted_N,
    block_experts,
    n_sorted,
    n_slots,
    K: tl.constexpr,
    T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    E: tl.constexpr,
    M: tl.constexpr,
):
    """Lay assignments out by expert in blocks of M rows; no expert may have more than M.

    As ``moe_align_block_size`` does: ``sorted_N`` holds numbers of assignments and, where a block
    is not full, ``n_slots``; ``block_experts`` each block's expert.
    """
    N: tl.constexpr = T * BLOCK_K
    slot = tl.arange(0, BLOCK_K)[None, :]
    number_TK = tl.arange(0, T)[:, None] * K + slot
    number_N = tl.reshape(tl.broadcast_to(number_TK, [T, BLOCK_K]), [N])
    computed_N = tl.reshape(computed_TK, [N])
    expert_N = tl.where(computed_N, tl.reshape(expert_TK, [N]), -1)
    expert_E = tl.arange(0, E)
    has_NE = computed_N[:, None] & (expert_N[:, None] == expert_E[None, :])
    used_E = tl.max(has_NE.to(tl.int32), axis=0)
    block_E = tl.cumsum(used_E, axis=0) - used_E
    block_N = tl.sum(tl.where(has_NE, block_E[None, :], 0), axis=1)
    order_N = tl.arange(0, N)
    before_NN = (expert_N[:, None] == expert_N[None, :]) & (order_N[None, :] < order_N[:, None])
    rank_N = tl.sum(before_NN.to(tl.int32), axis=1)
    # Every used block is filled with "none" first, then its rows take their places.
    row_M = tl.arange(0, M)
    leader_N = computed_N & (rank_N == 0)
    place_NM = (block_N * M)[:, None] + row_M[None, :]
    nothing_NM = tl.zeros([N, M], tl.int32) + n_slots
    tl.store(sorted_N + place_NM, nothing_NM, mask=tl.broadcast_to(leader_N[:, None], [N, M]))
    tl.debug_barrier()
    tl.store(sorted_N + block_N * M + rank_N, number_N, mask=computed_N)
    tl.store(block_experts + block_E, expert_E, mask=used_E > 0)
    tl.store(n_sorted, tl.sum(used_E) * M)


# A number of tokens must not compile anew in the middle of serving.
@triton.jit(do_not_specialize=["n_tokens", "n_real"])
def route_kernel(
    logits,
    bias_E,
    padding_T,
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
    sorted_N,
    block_experts,
    n_sorted,
    n_tokens,
    n_real,
    n_rows,
    n_earlier_words,
    n_experts: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    LEVELS: tl.constexpr,
    V: tl.constexpr,
    PER_LOAD: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_LEVELS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    EARLIER_W: tl.constexpr,
    SCORING: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    ZERO_PADDING: tl.constexpr,
    GROUPED: tl.constexpr,
    G: tl.constexpr,
    KEPT_G: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
    DECIDE: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DEVICE_MATH: tl.constexpr,
):
    """One program routes T tokens. With ``BLOCK_M`` the only program lays out the blocks too."""
    if DECIDE and tl.program_id(0) == 0:
        harvest(earlier_seen_W, earlier_counts, n_earlier_words, EARLIER_W)
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    there_T = token_T < n_tokens
    slot_K = tl.arange(0, BLOCK_K)
    scores = _scores(
        logits, token_T, there_T, n_experts, T, H, LEVELS, V, PER_LOAD, BY_BLOCK, SCORING,
        DEVICE_MATH,
    )  # fmt: skip
    score_TK, expert_TK, sum_T = _top_k(
        scores, bias_E, slot_K, n_experts, T, H, V, PER_LOAD, K, BLOCK_K, HAS_BIAS, G, KEPT_G
    )
    weight_TK = _weights(score_TK, sum_T, T, BLOCK_K, K_LEVELS, GROUPED, RENORMALIZE, SCALE)
    within_TK = there_T[:, None] & (slot_K < K)[None, :]
    id_TK = expert_TK
    if HAS_PADDING:
        padded_T = tl.load(padding_T + token_T, mask=there_T, other=0) != 0
        id_TK = tl.where(padded_T[:, None], -1, id_TK)
        if ZERO_PADDING:
            weight_TK = tl.where(padded_T[:, None], 0.0, weight_TK)
    written_TK = weight_TK
    if DECIDE:
        _, counted_T, beta_T = rows_and_betas(betas_R, rows_T, n_rows, token_T, n_real)
        real_TK = counted_T[:, None] & within_TK
        given_TK, keep_TK, broken_T, first_TK = kept_slots(
            weight_TK, expert_TK, real_TK, beta_T, factors_E, n_experts, slot_K, K
        )
        skipped_TK = real_TK & ~keep_TK
        changed_T = tl.max(skipped_TK.to(tl.int32), axis=1) > 0
        # A token that loses nothing is stock's: level 0 is exact to the bit.
        kept_TK = scaled(given_TK, given_TK, keep_TK, RENORMALIZE)
        written_TK = tl.where(changed_T[:, None], kept_TK, weight_TK)
        if MODE == 0:
            id_TK = tl.where(skipped_TK, -1, id_TK)
        if MODE == 1:
            best_T = tl.max(tl.where(first_TK, expert_TK, -1), axis=1)
            id_TK = tl.where(skipped_TK, best_T[:, None], id_TK)
        # In mode zero the weights of a skipped expert are read all the same.
        read_TK = real_TK if MODE == 2 else keep_TK
        nothing = tl.zeros([], tl.int64)
        count(
            counts, seen_W, token_T, skipped_T, expert_TK, read_TK & (id_TK >= 0), given_TK,
            skipped_TK, counted_T, broken_T, nothing, n_experts, T, BLOCK_K, BLOCK_W,
        )  # fmt: skip
    place_TK = token_T.to(tl.int64)[:, None] * K + slot_K[None, :]
    tl.store(weights_TK + place_TK, written_TK, mask=within_TK)
    tl.store(ids_TK + place_TK, id_TK.to(ids_TK.dtype.element_ty), mask=within_TK)
    if BLOCK_M > 0:
        _blocks(
            id_TK, within_TK & (id_TK >= 0), sorted_N, block_experts, n_sorted, n_tokens * K,
            K, T, BLOCK_K, BLOCK_E, BLOCK_M,
        )  # fmt: skip
