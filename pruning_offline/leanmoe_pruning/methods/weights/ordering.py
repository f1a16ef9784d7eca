"""Columns dealt into groups so that a pattern N:M costs little beside the same share of each row.

Without groups a row would keep its best weights, those above a threshold of its own. Where these
lie unevenly, a group must give some up and another keeps worse ones: the thresholds of groups
move apart. What that costs grows with the square of how far they move, so the search looks for
groups in which a mark m_rj, how far weight j of row r lies above the row's threshold, adds up to
much the same:

    sum over rows and groups of (sum of m_rj in the group)^2
        = sum over pairs of columns i, j of one group of A_ij,   A = m^T m.

A mark ends at a fifth of the threshold on either side, since weights further off are kept or go
in any group, and weighs as much as the threshold itself, since that is what a place is worth.
Marks are whole numbers of 7 bits and A is counted once, exactly: the order is the same on every
machine. A round takes one column out of every group and deals them out again the best way there
is, a linear assignment, since columns of different groups do not meet in one cell of the sum (as
the batches of swaps in "Channel Permutations for N:M Sparsity", NeurIPS 2021, but exact).
R rows, C columns, M columns per group, G groups.
"""

from __future__ import annotations

import numpy as np
import torch

from leanmoe_pruning.later import optimize
from leanmoe_pruning.methods.weights.pattern import OfEvery

# Rows that are counted, evenly spaced; more change little and cost time.
ROWS = 8192
# A round deals every column once. The search ends when one wins little beside all before it.
ROUNDS = 100
LITTLE = 0.001
# How far from its row's threshold, as a share of it, a weight is sure to stay or to go.
_REACH = 0.2
# Processors without VNNI add pairs of products of 8-bit numbers, one shifted by 128, in 16 bits.
_LARGEST = 63


def balanced_order(score_RC: torch.Tensor, pattern: OfEvery, seed: int) -> torch.Tensor:
    """The order to group columns in, int64 ``[C]``, new position to column.

    It keeps at least the score of the order that the columns are in, which is the answer where
    nothing better is found. The same scores and seed give the same order.
    """
    marks_RC = _marks(_sample(score_RC), pattern)
    slots_GM = _dealt(marks_RC, pattern.group)
    _improve_(slots_GM, _together(marks_RC), seed)
    # Places inside a group mean nothing: ascending, reads of the input stay near each other.
    found = torch.from_numpy(np.sort(slots_GM, axis=1).reshape(-1))
    better = kept_score(score_RC[:, found], pattern) > kept_score(score_RC, pattern)
    return found if better else torch.arange(len(found))


def kept_score(score_RC: torch.Tensor, pattern: OfEvery) -> float:
    """The sum of squared scores that the pattern keeps: what it leaves of the outputs' energy."""
    # NumPy sorts short rows ten times faster than torch selects from them.
    groups = np.sort(score_RC.numpy().reshape(-1, pattern.group), axis=1)
    return float(np.square(groups[:, pattern.dropped :], dtype=np.float64).sum())


def _sample(score_RC: torch.Tensor) -> torch.Tensor:
    return score_RC[:: -(-len(score_RC) // ROWS)]


def _marks(score_RC: torch.Tensor, pattern: OfEvery) -> torch.Tensor:
    """How far each weight lies above its row's threshold, int8 ``[R, C]``."""
    dropped = score_RC.shape[1] * pattern.dropped // pattern.group
    threshold_R1 = score_RC.kthvalue(dropped, dim=1, keepdim=True)[0]
    # Rows that lose nothing but zeros have no threshold, and no say.
    relative_RC = (score_RC / threshold_R1 - 1).nan_to_num_(0.0, 0.0, 0.0)
    return (
        relative_RC.div_(_REACH).clamp_(-1, 1).mul_(_weight(threshold_R1)).round_().to(torch.int8)
    )


def _weight(threshold_R1: torch.Tensor) -> torch.Tensor:
    """Thresholds in whole marks; the few largest rows count alike, lest the others get none."""
    most = threshold_R1.flatten().kthvalue(max(1, len(threshold_R1) * 19 // 20))[0]
    return (threshold_R1 / most).nan_to_num_(0.0, 0.0, 0.0).clamp_(max=1.0) * _LARGEST


def _together(marks_RC: torch.Tensor) -> np.ndarray:
    """A, int32 ``[C, C]``."""
    # torch has no public product of 8-bit numbers; in float32 this takes four times as long.
    counted: np.ndarray = torch._int_mm(marks_RC.t().contiguous(), marks_RC).numpy()
    return counted


def _dealt(marks_RC: torch.Tensor, group: int) -> np.ndarray:
    """Columns by the sum of their marks, dealt to and fro over the groups, ``[G, M]``."""
    order_C = marks_RC.sum(0).argsort(descending=True, stable=True).numpy()
    dealt_MG = order_C.reshape(group, -1).copy()
    dealt_MG[1::2] = dealt_MG[1::2, ::-1]
    return np.ascontiguousarray(dealt_MG.T)


def _improve_(slots_GM: np.ndarray, together_CC: np.ndarray, seed: int) -> None:
    """Deal columns again, one of each group at a time, until that wins little."""
    drawn = np.random.default_rng(seed)
    sums_GC = np.stack([together_CC[held].sum(0, dtype=np.float64) for held in slots_GM])
    total = 0.0
    for _ in range(ROUNDS):
        drawn.permuted(slots_GM, axis=1, out=slots_GM)
        won = sum(_deal_(slots_GM[:, m], together_CC, sums_GC) for m in range(slots_GM.shape[1]))
        total += won
        if won <= LITTLE * total:
            return


def _deal_(columns_G: np.ndarray, together_CC: np.ndarray, sums_GC: np.ndarray) -> float:
    """Deal one column of each group anew, in place; how much less they meet."""
    # What each would meet in each group, the column that leaves it left out.
    meets_GG = sums_GC[:, columns_G].T - together_CC[np.ix_(columns_G, columns_G)]
    of_G, to_G = optimize.linear_sum_assignment(meets_GG)
    before_G = columns_G.copy()
    columns_G[to_G] = before_G
    moved = np.flatnonzero(columns_G != before_G)
    # Rows of the symmetric counts, which lie in one piece.
    sums_GC[moved] += together_CC[columns_G[moved]]
    sums_GC[moved] -= together_CC[before_G[moved]]
    return float(meets_GG.trace() - meets_GG[of_G, to_G].sum())
