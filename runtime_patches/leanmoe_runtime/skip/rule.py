"""The skip rules, told plainly in tensor operations: what every other telling is tested against.

A token's threshold says the rule and its beta (``leanmoe.skip_rule``). Keep expert j of a token
when w_j >= beta * w_max (NAEE, arXiv 2402.14800, generalised from k = 2 to any k), when
w_j f_j >= beta * max(w f) with the layer's factors f, or when it is among the so many largest. The
best one, by w or by w f, always survives. Kept weights are renormalised where the model's router
renormalises.

It is repeated where it runs at every step. On a CPU in C (``keep_row`` and ``scale_of`` in
``cpu.c``): a handful of tensor operations between two kernels costs more there than skipping
saves. On a device in Triton (``kept_slots`` and ``scaled`` in ``device/rule_kernel.py``, shared by
the routing, the decision and the budget kernel): a decision may cost no launch of its own, and
must be in a captured graph. ``tests/property/runtime`` holds both against ``decide``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from leanmoe.messages import SkipMode

# A token's row number fits these bits; what lies above is meant for the CPU's planner.
ROW_BITS = 255


class Decision(NamedTuple):
    """What the experts are given, and what is counted of it.

    ``distinct_experts`` are those whose weights are read for counted tokens; ``skipped_weight`` is
    the skipped weight, each token's whole weight being 1.
    """

    weights_TK: torch.Tensor
    ids_TK: torch.Tensor
    keep_TK: torch.Tensor
    tokens: int
    skipped: int
    nonfinite: int
    distinct_experts: int
    skipped_weight: float


def decide(
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    betas_R: torch.Tensor,
    rows_T: torch.Tensor,
    *,
    renormalize: bool,
    mode: SkipMode,
    factors_E: torch.Tensor | None = None,
) -> Decision:
    """The whole decision of one layer and step.

    A token of row ``r >= 0`` uses ``betas_R[r & ROW_BITS]``; below 0 it keeps everything and is
    not counted. ``factors_E`` are the layer's, 1 where ``None``. Weights that are no numbers keep
    everything too. Computed in float32; tokens that lose nothing keep their weights to the bit.
    """
    counted_T = rows_T[: len(weights_TK)] >= 0
    given_TK = weights_TK.float()
    strange_T = ~given_TK.isfinite().all(dim=1)
    sound_TK = torch.where(strange_T[:, None], 0.0, given_TK)
    betas_T = _betas(betas_R, rows_T[: len(weights_TK)])
    factors_TK = None if factors_E is None else factors_E[ids_TK.long().clamp(min=0)]
    scores_TK = scores(sound_TK, betas_T, factors_TK)
    keep_TK = kept(scores_TK, betas_T) | ~counted_T[:, None] | strange_T[:, None]
    skipped_TK = torch.where(keep_TK, 0.0, sound_TK)
    read_TK = keep_TK if mode is not SkipMode.ZERO else torch.ones_like(keep_TK)
    return Decision(
        weights_TK=_weights(weights_TK, keep_TK, renormalize),
        ids_TK=_ids(ids_TK, scores_TK, keep_TK, mode),
        keep_TK=keep_TK,
        tokens=int(counted_T.sum()),
        skipped=int((~keep_TK).sum()),
        nonfinite=int((strange_T & counted_T).sum()),
        distinct_experts=len(set(ids_TK[read_TK & counted_T[:, None]].tolist())),
        skipped_weight=_mass(skipped_TK, sound_TK),
    )


def scores(
    weights_TK: torch.Tensor, betas_T: torch.Tensor, factors_TK: torch.Tensor | None
) -> torch.Tensor:
    """What a token's experts are judged by: weights, times factors under the norm rule."""
    if factors_TK is None:
        return weights_TK
    return torch.where(betas_T[:, None] < 0, weights_TK * factors_TK, weights_TK)


def kept(scores_TK: torch.Tensor, betas_T: torch.Tensor) -> torch.Tensor:
    """The rules themselves: which assignments stay, by each token's threshold."""
    beta_T1, top_T1 = betas_T[:, None], scores_TK.amax(dim=1, keepdim=True)
    reaches_TK = (scores_TK >= beta_T1.abs() * top_T1) | (scores_TK == top_T1)
    return torch.where(beta_T1 > 1, _ranks(scores_TK) < beta_T1 - 1, reaches_TK)


def _ranks(scores_TK: torch.Tensor) -> torch.Tensor:
    """How many slots come before each one; of equals, the first slot does."""
    order_TK = scores_TK.argsort(dim=1, descending=True, stable=True)
    return order_TK.argsort(dim=1)


def _betas(betas_R: torch.Tensor, rows_T: torch.Tensor) -> torch.Tensor:
    rows_T = (rows_T & ROW_BITS).long()
    return torch.where(rows_T < len(betas_R), betas_R[rows_T.clamp(max=len(betas_R) - 1)], 0.0)


def _weights(given_TK: torch.Tensor, keep_TK: torch.Tensor, renormalize: bool) -> torch.Tensor:
    kept_TK = torch.where(keep_TK, given_TK.float(), 0.0)
    if renormalize:
        kept_T1 = kept_TK.sum(dim=1, keepdim=True)
        scale_T1 = given_TK.float().sum(dim=1, keepdim=True) / torch.where(kept_T1 != 0, kept_T1, 1)
        kept_TK = torch.where(kept_T1 != 0, kept_TK * scale_T1, kept_TK)
    unchanged_T1 = keep_TK.all(dim=1, keepdim=True)
    return torch.where(unchanged_T1, given_TK, kept_TK.to(given_TK.dtype))


def _ids(
    ids_TK: torch.Tensor, scores_TK: torch.Tensor, keep_TK: torch.Tensor, mode: SkipMode
) -> torch.Tensor:
    if mode is SkipMode.MASK:
        return torch.where(keep_TK, ids_TK, -1)
    if mode is SkipMode.REDIRECT:
        best_T1 = scores_TK.argmax(dim=1, keepdim=True)  # the first of equals
        return torch.where(keep_TK, ids_TK, ids_TK.gather(1, best_T1))
    return ids_TK


def _mass(skipped_TK: torch.Tensor, sound_TK: torch.Tensor) -> float:
    total_T = sound_TK.sum(dim=1).double()
    return float((skipped_TK.sum(dim=1).double() / torch.where(total_T != 0, total_T, 1)).sum())
