"""Sums over tokens that the weight pruning methods rank input columns by.

Wanda's n_j is the root of ``input_ED`` and ``hidden_EF``, MoE-Pruner's that of their
``gated_`` twins (arXiv 2306.11695, 2410.12013). Squares of float32 values, summed in float64.
T tokens, R of them, D model, F expert hidden, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from leanmoe_pruning.forward.routing import Routing

_ROWS = 64  # squared at a time


@dataclass(frozen=True)
class Moments:
    """Sums of squares per input column of one layer's experts, float64; ``calls_E`` int64."""

    # Sums of x^2 over the tokens routed to the expert: what gate_proj and up_proj multiply.
    input_ED: torch.Tensor
    # Sums of (g x)^2 over the same tokens, with g the weight the expert's output is given.
    gated_input_ED: torch.Tensor
    # The same two sums for what down_proj multiplies.
    hidden_EF: torch.Tensor
    gated_hidden_EF: torch.Tensor
    # Sums over tokens whoever they were routed to, for experts that got none:
    # x^2 over all tokens, the hidden ones over the Gram's tokens.
    all_input_D: torch.Tensor
    all_hidden_EF: torch.Tensor
    # Windows in which the expert was used.
    calls_E: torch.Tensor

    @classmethod
    def zeros(cls, n_experts: int, hidden_size: int, ffn_size: int) -> Moments:
        def sums(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.float64)

        return cls(
            sums(n_experts, hidden_size),
            sums(n_experts, hidden_size),
            sums(n_experts, ffn_size),
            sums(n_experts, ffn_size),
            sums(hidden_size),
            sums(n_experts, ffn_size),
            torch.zeros(n_experts, dtype=torch.int64),
        )

    def add_(self, other: Moments) -> None:
        """Take the sums of further tokens in."""
        for name, held in self.tensors().items():
            held += getattr(other, name)

    def add_inputs_(self, x_TD: torch.Tensor, shares: Shares) -> None:
        """Take in what a block's tokens put into its experts."""
        n_experts = len(self.calls_E)
        weights_WT = torch.cat([torch.ones_like(shares.routed_ET[:1]), *shares.of_all()])
        sums_WD = _weighted_squares(weights_WT, x_TD)
        self.all_input_D.add_(sums_WD[0])
        self.input_ED.add_(sums_WD[1 : 1 + n_experts])
        self.gated_input_ED.add_(sums_WD[1 + n_experts :])

    def add_hidden_(
        self, expert: int, hidden_RF: torch.Tensor, rows: torch.Tensor, shares: Shares
    ) -> None:
        """Take in an expert's hidden values of the tokens ``rows``, whoever they are routed to."""
        sums_3F = _weighted_squares(shares.of_expert(expert)[:, rows], hidden_RF)
        self.all_hidden_EF[expert] += sums_3F[0]
        self.hidden_EF[expert] += sums_3F[1]
        self.gated_hidden_EF[expert] += sums_3F[2]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The sums by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Shares:
    """With what weight each token counts for each expert, float64."""

    # 1 where a token is routed to the expert, and the square of its weight there; else 0.
    routed_ET: torch.Tensor
    gated_ET: torch.Tensor
    # 1 for tokens that have a Gram matrix.
    sampled_T: torch.Tensor

    @classmethod
    def of(cls, routing: Routing, n_experts: int, sampled: torch.Tensor) -> Shares:
        """The shares of tokens that are routed so; ``sampled`` are rows of them."""
        ids_KT = routing.ids_TK.T
        gates_KT = routing.applied().T.double()
        none_ET = torch.zeros(n_experts, ids_KT.shape[1], dtype=torch.float64)
        sampled_T = torch.zeros_like(none_ET[0]).index_fill_(0, sampled, 1.0)
        return cls(
            none_ET.scatter(0, ids_KT, 1.0),
            none_ET.scatter(0, ids_KT, gates_KT.square()),
            sampled_T,
        )

    def of_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows for all experts, plain and gated."""
        return self.routed_ET, self.gated_ET

    def of_expert(self, expert: int) -> torch.Tensor:
        """The weights of the sums over one expert's hidden values, ``[3, T]``."""
        return torch.stack([self.sampled_T, self.routed_ET[expert], self.gated_ET[expert]])


def _weighted_squares(weights_WT: torch.Tensor, values_TN: torch.Tensor) -> torch.Tensor:
    """The sums of squares of each column, weighted in W ways, float64 ``[W, N]``.

    A few rows at a time: their float64 squares stay in the processor's cache.
    """
    sums_WN = torch.zeros(len(weights_WT), values_TN.shape[1], dtype=torch.float64)
    for start in range(0, len(values_TN), _ROWS):
        some = slice(start, start + _ROWS)
        squares = values_TN[some].to(torch.float64, copy=True).square_()
        sums_WN.addmm_(weights_WT[:, some], squares)
    return sums_WN
