"""Columns dealt into groups so that a pattern N:M costs little beside half of each row.

An N:M mask keeps as many weights in every group of M columns, whatever they are worth. Without
groups a row would keep its best weights; where these lie unevenly, a group must give some up and
another keeps worse ones. What that costs grows with the square of the excess, so the search looks
for groups in which the number K of weights worth keeping hardly varies: over rows r and groups g

    sum of K_rg^2 = sum over pairs of columns i, j of one group of A_ij,   A = B^T B,

with B the mask that keeps each row's best share. A is counted once. A round takes one column out
of every group and deals them out again the best way there is, a linear assignment, since columns
of different groups do not meet in one cell of the sum (as the batches of swaps in "Channel
Permutations for N:M Sparsity", NeurIPS 2021, but exact). Counts are whole numbers: the order is
the same on every machine. R rows, C columns, M columns per group, G groups.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from leanmoe_pruning.methods.weights.pattern import OfEvery, Unstructured

# Rows that are counted, evenly spaced; more change little and cost time.
ROWS = 8192
# Each deals every column once; most searches end before, when a round moves nothing.
ROUNDS = 30


def balanced_order(score_RC: torch.Tensor, pattern: OfEvery, seed: int) -> torch.Tensor:
    """The order to group columns in, int64 ``[C]``, new position to column.

    It keeps at least the score of the order that the columns are in, which is the answer where
    nothing better is found. The same scores and seed give the same order.
    """
    best_RC = _best_share(_sample(score_RC), pattern)
    slots_GM = _dealt(best_RC, pattern.group)
    _improve_(slots_GM, (best_RC.t() @ best_RC).numpy(), seed)
    # Places inside a group mean nothing: ascending, reads of the input stay near each other.
    found = torch.from_numpy(np.sort(slots_GM, axis=1).reshape(-1))
    better = kept_score(score_RC[:, found], pattern) > kept_score(score_RC, pattern)
    return found if better else torch.arange(len(found))


def kept_score(score_RC: torch.Tensor, pattern: OfEvery) -> float:
    """The sum of squared scores that the pattern keeps: what it leaves of the outputs' energy."""
    groups = score_RC.reshape(-1, pattern.group)
    return float(groups.topk(pattern.kept, dim=1)[0].double().square().sum())


def _sample(score_RC: torch.Tensor) -> torch.Tensor:
    return score_RC[:: -(-len(score_RC) // ROWS)]


def _best_share(score_RC: torch.Tensor, pattern: OfEvery) -> torch.Tensor:
    """Which weights each row would keep without groups, float32 0 or 1 ``[R, C]``."""
    share = Unstructured(pattern.dropped / pattern.group)
    return share.keep(score_RC, score_RC).float()


def _dealt(best_RC: torch.Tensor, group: int) -> np.ndarray:
    """Columns by how often they are kept, dealt to and fro over the groups, ``[G, M]``."""
    often_C = best_RC.sum(0).argsort(descending=True, stable=True).numpy()
    dealt_MG = often_C.reshape(group, -1).copy()
    dealt_MG[1::2] = dealt_MG[1::2, ::-1]
    return np.ascontiguousarray(dealt_MG.T)


def _improve_(slots_GM: np.ndarray, together_CC: np.ndarray, seed: int) -> None:
    """Deal columns again, one of each group at a time, until no deal is better."""
    drawn = np.random.default_rng(seed)
    sums_GC = np.stack([together_CC[held].sum(0, dtype=np.float64) for held in slots_GM])
    for _ in range(ROUNDS):
        drawn.permuted(slots_GM, axis=1, out=slots_GM)
        if not sum(_deal_(slots_GM[:, m], together_CC, sums_GC) for m in range(slots_GM.shape[1])):
            return


def _deal_(columns_G: np.ndarray, together_CC: np.ndarray, sums_GC: np.ndarray) -> int:
    """Deal one column of each group anew, in place; how many went elsewhere."""
    # What each would meet in each group, the column that leaves it left out.
    meets_GG = sums_GC[:, columns_G].T - together_CC[np.ix_(columns_G, columns_G)]
    _, to_G = linear_sum_assignment(meets_GG)
    before_G = columns_G.copy()
    columns_G[to_G] = before_G
    moved = np.flatnonzero(columns_G != before_G)
    # Rows of the symmetric counts, which lie in one piece.
    sums_GC[moved] += together_CC[columns_G[moved]]
    sums_GC[moved] -= together_CC[before_G[moved]]
    return len(moved)
