"""Sums over tokens that the weight pruning methods rank input columns by.

Wanda's n_j is the root of ``input_ED`` and ``hidden_EF``, MoE-Pruner's that of their
``gated_`` twins (arXiv 2306.11695, 2410.12013). Squares of float32 values, summed in float64.
T tokens, D model, F expert hidden, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


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

    def add_inputs_(self, x_TD: torch.Tensor) -> None:
        """Take tokens in, whoever they are routed to."""
        self.all_input_D.add_(_squares(x_TD).sum(0))

    def add_hidden_(self, expert: int, hidden_SF: torch.Tensor) -> None:
        """Take an expert's hidden values in, of tokens that may not be routed to it."""
        self.all_hidden_EF[expert] += _squares(hidden_SF).sum(0)

    def add_routed_(
        self, expert: int, x_ND: torch.Tensor, hidden_NF: torch.Tensor, gates_N: torch.Tensor
    ) -> None:
        """Take tokens in that were routed to ``expert`` with weights ``gates_N``."""
        gates_N = gates_N.double()
        weights_2N = torch.stack([torch.ones_like(gates_N), gates_N.square()])
        plain_D, gated_D = weights_2N @ _squares(x_ND)
        plain_F, gated_F = weights_2N @ _squares(hidden_NF)
        self.input_ED[expert] += plain_D
        self.gated_input_ED[expert] += gated_D
        self.hidden_EF[expert] += plain_F
        self.gated_hidden_EF[expert] += gated_F

    def tensors(self) -> dict[str, torch.Tensor]:
        """The sums by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _squares(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float64, copy=True).square_()
