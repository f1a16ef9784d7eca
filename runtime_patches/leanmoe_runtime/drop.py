"""How the CPU leaves skipped assignments out of the grouped kernel.

vLLM's CPU kernel indexes its buffers with every id it is given, so an id of -1
corrupts memory; and a weight of zero is still computed. Three ways remain, taken
in this order:

- *even*: every token keeps equally many experts (always so for one token, and at
  level 1). The kernel runs with that smaller top-k on the same rows: nothing is
  gathered, nothing rounded twice.
- *redirect*: with few rows the kernel is bound by the expert weights it reads; a
  skipped slot points at the token's top-1 expert with weight zero.
- *compact*: kept (token, expert) pairs are gathered, run with top-k 1 and summed
  in float32. Fewer rows to compute, which pays where many rows run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from leanmoe_runtime.rule import Mask, Weights

# Rows up to which redirecting beats compacting; measured by `leanmoe bench kernel`.
REDIRECT_MAX_ROWS = 4

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def run_kept(
    kernel: Kernel,
    x_TD: torch.Tensor,
    weights_TK: Weights,
    ids_TK: torch.Tensor,
    keep_TK: Mask,
) -> torch.Tensor:
    """Output of the kept assignments only, [T, D]; ``weights_TK`` has zeros where skipped.

    ``kernel(x, weights, ids)`` is the stock grouped kernel for any number of ids per row.
    """
    kept_T = keep_TK.sum(axis=1)
    if kept_T.min() == kept_T.max():
        return even(kernel, x_TD, weights_TK, ids_TK, keep_TK, int(kept_T[0]))
    if len(kept_T) <= REDIRECT_MAX_ROWS:
        return redirect(kernel, x_TD, weights_TK, ids_TK, keep_TK)
    return compact(kernel, x_TD, weights_TK, ids_TK, keep_TK)


def even(
    kernel: Kernel,
    x_TD: torch.Tensor,
    weights_TK: Weights,
    ids_TK: torch.Tensor,
    keep_TK: Mask,
    kept: int,
) -> torch.Tensor:
    weights = torch.from_numpy(weights_TK[keep_TK].reshape(-1, kept))
    ids = torch.from_numpy(ids_TK.numpy()[keep_TK].reshape(-1, kept))
    return kernel(x_TD, weights, ids)


def redirect(
    kernel: Kernel,
    x_TD: torch.Tensor,
    weights_TK: Weights,
    ids_TK: torch.Tensor,
    keep_TK: Mask,
) -> torch.Tensor:
    ids = ids_TK.numpy()
    top_T1 = np.take_along_axis(ids, weights_TK.argmax(axis=1)[:, None], axis=1)
    redirected = np.where(keep_TK, ids, top_T1).astype(ids.dtype, copy=False)
    return kernel(x_TD, torch.from_numpy(weights_TK), torch.from_numpy(redirected))


def compact(
    kernel: Kernel,
    x_TD: torch.Tensor,
    weights_TK: Weights,
    ids_TK: torch.Tensor,
    keep_TK: Mask,
) -> torch.Tensor:
    rows_N = torch.from_numpy(keep_TK.nonzero()[0])
    weights_N1 = torch.from_numpy(weights_TK[keep_TK][:, None])
    ids_N1 = torch.from_numpy(ids_TK.numpy()[keep_TK][:, None])
    out_ND = kernel(x_TD.index_select(0, rows_N), weights_N1, ids_N1)
    sum_TD = torch.zeros(x_TD.shape, dtype=torch.float32)
    return sum_TD.index_add_(0, rows_N, out_ND.float()).to(x_TD.dtype)
