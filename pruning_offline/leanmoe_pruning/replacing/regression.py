"""The constant, or the affine map of low rank, nearest to what an expert gives.

Least squares over the tokens routed to the expert, each weighed by the square of its gate g, so
that what is made small is the error that reaches the block's output:

    sum_n g_n^2 |f(x_n) - c - (x_n into^T) out|^2 + ridge v |into^T out|^2

with v the weighted sum of squares of the centred inputs, per dimension. At rank 0 that is c, the
mean of f weighed by g^2; MoNE (arXiv 2507.00390) takes the mean without weights. At rank R it is
reduced-rank ridge regression: the full ridge solution, projected on the R directions of the
outputs in which it explains most. N tokens of an expert, D model, R rank. Sums are float64.
"""

from __future__ import annotations

import torch

from leanmoe_pruning.forward.stand_ins import LowRank

# Of the mean of the inputs' squares: below it, directions that hardly occur in the text are fitted
# to noise.
RIDGE = 0.01
# What keeps inputs of fewer tokens than dimensions solvable, whatever the ridge.
_LEAST = 1e-9


class ExpertSums:
    """Sums over the tokens of one expert, enough for any rank up to ``rank``."""

    def __init__(self, width: int, rank: int) -> None:
        side = width if rank else 0
        self._rank = rank
        self.tokens, self._mass = 0, 0.0
        self._input_D = torch.zeros(width, dtype=torch.float64)
        self._output_D = torch.zeros(width, dtype=torch.float64)
        self._inputs_DD = torch.zeros(side, side, dtype=torch.float64)
        self._across_DD = torch.zeros(side, side, dtype=torch.float64)

    def add(self, x_ND: torch.Tensor, y_ND: torch.Tensor, gate_N: torch.Tensor) -> None:
        """Take tokens: the expert's inputs, its outputs and its weight in the block's output."""
        x_ND, y_ND, square_N = x_ND.double(), y_ND.double(), gate_N.double().square()
        weighed_ND = square_N[:, None] * x_ND
        self.tokens += len(x_ND)
        self._mass += float(square_N.sum())
        self._input_D += weighed_ND.sum(0)
        self._output_D += square_N @ y_ND
        if self._rank:
            self._inputs_DD.addmm_(weighed_ND.t(), x_ND)
            self._across_DD.addmm_(weighed_ND.t(), y_ND)

    def solve(self, ridge: float = RIDGE) -> LowRank:
        """The stand-in; zero where no token was added, or none with any weight."""
        mass = self._mass or 1.0
        x_D, y_D = self._input_D / mass, self._output_D / mass
        into_RD, out_RD = self._maps(x_D, y_D, ridge)
        constant_D = y_D - (x_D @ into_RD.t()) @ out_RD
        return LowRank(constant_D.float(), into_RD.float(), out_RD.float())

    def _maps(
        self, x_D: torch.Tensor, y_D: torch.Tensor, ridge: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        none_RD = torch.zeros(self._rank, len(x_D), dtype=torch.float64)
        if not self._rank:
            return none_RD, none_RD
        centred_DD = self._inputs_DD - self._mass * torch.outer(x_D, x_D)
        total, raw = (float(one.diagonal().sum()) for one in (centred_DD, self._inputs_DD))
        if total <= _LEAST * raw:  # of no token, or of one and the same
            return none_RD, none_RD
        across_DD = self._across_DD - self._mass * torch.outer(x_D, y_D)
        centred_DD.diagonal().add_((ridge * total + _LEAST * raw) / len(x_D))
        full_DD = torch.cholesky_solve(across_DD, torch.linalg.cholesky(centred_DD))
        # Ascending; the last explain most.
        explained_DD = across_DD.t() @ full_DD
        _, vectors_DD = torch.linalg.eigh((explained_DD + explained_DD.t()) / 2)
        out_DR = vectors_DD[:, -self._rank :]
        return (full_DD @ out_DR).t().contiguous(), out_DR.t().contiguous()
