"""Per-token Gram matrices of expert outputs, and losses of routings computed from them.

With f_e the outputs of all experts for a token and z the output it should have,
the vectors g_e = f_e - z and z span every output a changed routing can give:
sum_e a_e f_e - z = sum_e a_e g_e + (sum_e a_e - 1) z. Their inner products are
enough for the squared distance of any routing, so a subset of experts costs a few
multiplications per token and no forward pass. Centring on z keeps the precision
where experts resemble one another. S subsets, T tokens, D model, E experts, K top-k.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement

from leanmoe_pruning.later import torch

_MOST_BYTES = 1 << 20  # of float64 vectors held at a time: they stay in a processor's cache


@lru_cache
def _pair_table(n: int) -> torch.Tensor:
    table = torch.empty(n, n, dtype=torch.int64)
    row, column = torch.triu_indices(n, n)
    table[row, column] = torch.arange(len(row))
    table[column, row] = torch.arange(len(row))
    return table


def packed_place(row: torch.Tensor, column: torch.Tensor, n: int) -> torch.Tensor:
    """Where the product of vectors ``row`` and ``column``, of ``n``, lies among the packed ones."""
    return _pair_table(n)[row, column]


def packed_size(n_experts: int) -> int:
    """Numbers stored per token: the upper triangle of (E+1) x (E+1)."""
    return (n_experts + 1) * (n_experts + 2) // 2


def centred_gram(outputs_ETD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """Packed inner products of [f_e - z ..., z] per token, float64 ``[T, (E+1)(E+2)/2]``.

    A subset that hardly changes anything has a loss far below the terms it is the
    difference of: float32 would leave noise of it.
    """
    n, tokens = len(outputs_ETD) + 1, len(target_TD)
    row, column = torch.triu_indices(n, n)
    place_P = row * n + column
    gram_TP = torch.empty(tokens, len(place_P), dtype=torch.float64)
    step = max(1, _MOST_BYTES // (n * target_TD.shape[1] * 8))
    vectors_TED = torch.empty(step, n, target_TD.shape[1], dtype=torch.float64)
    for start in range(0, tokens, step):
        some = slice(start, start + step)
        z_TD = target_TD[some]
        held_TED = vectors_TED[: len(z_TD)]
        held_TED[:, :-1] = (outputs_ETD[:, some] - z_TD).transpose(0, 1)
        held_TED[:, -1] = z_TD
        products_TEE = held_TED @ held_TED.transpose(1, 2)
        torch.index_select(products_TEE.flatten(1), 1, place_P, out=gram_TP[some])
    return gram_TP


def squared_distance(
    gram_TP: torch.Tensor, weights_STK: torch.Tensor, ids_STK: torch.Tensor, n_experts: int
) -> torch.Tensor:
    """||sum_k a_k f_k - z||^2 per routing and token, float64 ``[S, T]``, for S routings at once."""
    subsets, tokens, _ = ids_STK.shape
    token_N = torch.arange(tokens).repeat(subsets)
    weights_NK, ids_NK = weights_STK.flatten(0, 1), ids_STK.flatten(0, 1)
    return row_distance(gram_TP, token_N, weights_NK, ids_NK, n_experts).view(subsets, tokens)


def row_distance(
    gram_TP: torch.Tensor,
    token_N: torch.Tensor,
    weights_NK: torch.Tensor,
    ids_NK: torch.Tensor,
    n_experts: int,
) -> torch.Tensor:
    """The same for N routings, each of one token, float64 ``[N]``."""
    weights_NK = weights_NK.double()
    rest_N1 = weights_NK.sum(-1, keepdim=True) - 1.0
    weights_JN = torch.cat([weights_NK, rest_N1], dim=-1).T.contiguous()
    ids_JN = torch.cat([ids_NK, torch.full_like(ids_NK[:, :1], n_experts)], dim=-1).T.contiguous()
    table, start_N = _pair_table(n_experts + 1).flatten(), token_N * gram_TP.shape[1]
    row_JN = ids_JN * (n_experts + 1)
    total_N = torch.zeros(len(token_N), dtype=torch.float64)
    for i, j in combinations_with_replacement(range(len(ids_JN)), 2):
        product_N = weights_JN[i] * weights_JN[j] * (1.0 if i == j else 2.0)
        total_N += product_N * gram_TP.take(start_N + table.take(row_JN[i] + ids_JN[j]))
    return total_N.clamp_min(0.0)


def target_product(
    gram_TP: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor, n_experts: int
) -> torch.Tensor:
    """(sum_k a_k (f_k - z)) . z per token, float64 ``[T]``."""
    pair_TK = _pair_table(n_experts + 1)[ids_TK, n_experts]
    return (weights_TK.double() * gram_TP.gather(-1, pair_TK)).sum(-1)
