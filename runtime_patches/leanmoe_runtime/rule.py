"""The skip rule in tensor operations, for devices; drop.c holds it for the CPU.

Keep expert j of a token when w_j >= beta * w_max. The largest always survives.
Kept weights are renormalised where the model's router renormalises. NAEE
(arXiv 2402.14800), generalised from k = 2 to any k.
"""

from __future__ import annotations

import torch


def mask_on_device(
    weights_TK: torch.Tensor, beta: torch.Tensor, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Kept weights [T, K], keep mask [T, K]); skipped weights are zero.

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
