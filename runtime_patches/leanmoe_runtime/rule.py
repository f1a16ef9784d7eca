"""The skip rule, once for host arrays and once for device tensors.

Keep expert j of a token when w_j >= beta * w_max. The largest always survives.
Kept weights are renormalised where the model's router renormalises. NAEE
(arXiv 2402.14800), generalised from k = 2 to any k.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Weights = NDArray[np.float32]
Mask = NDArray[np.bool_]


def keep_mask(weights_TK: Weights, beta: float) -> Mask:
    """True where an assignment is kept, [T, K]; one per row at least, NaN or not."""
    keep_TK: Mask = weights_TK >= np.float32(beta) * weights_TK.max(axis=1, keepdims=True)
    if not keep_TK.any(axis=1).all():
        keep_TK[np.arange(len(keep_TK)), weights_TK.argmax(axis=1)] = True
    return keep_TK


def kept_weights(weights_TK: Weights, keep_TK: Mask, renormalize: bool) -> Weights:
    """Weights with skipped ones at zero; rows sum to their old sum where ``renormalize``."""
    kept_TK: Weights = np.where(keep_TK, weights_TK, np.float32(0.0))
    if renormalize:
        total_T1 = weights_TK.sum(axis=1, keepdims=True)
        kept_TK *= total_T1 / kept_TK.sum(axis=1, keepdims=True)
    return kept_TK


def mask_on_device(
    weights_TK: torch.Tensor, beta: torch.Tensor, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rule in tensor operations: (kept weights [T, K], keep mask [T, K]).

    ``beta`` is a zero-dimensional tensor on the same device, so that a captured
    graph follows a level that changes.
    """
    top_T1 = weights_TK.amax(dim=1, keepdim=True)
    keep_TK = weights_TK >= beta * top_T1
    kept_TK = torch.where(keep_TK, weights_TK, 0.0)
    if renormalize:
        total_T1 = weights_TK.sum(dim=1, keepdim=True)
        kept_TK = kept_TK * (total_T1 / kept_TK.sum(dim=1, keepdim=True))
    return kept_TK, keep_TK
