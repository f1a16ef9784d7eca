"""One MoE layer's experts: SwiGLU feed-forward networks computed per expert in batches.

T tokens, D model, F expert hidden, E experts, K top-k. Products run in the
weights' dtype, sums over experts in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Experts:
    """Weights by expert: gate_proj and up_proj ``[F, D]``, down_proj ``[D, F]``."""

    gate_proj: Sequence[torch.Tensor]
    up_proj: Sequence[torch.Tensor]
    down_proj: Sequence[torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.down_proj[0].dtype

    def __len__(self) -> int:
        return len(self.down_proj)

    def hidden(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """What ``down_proj`` is multiplied with, ``[T, F]`` in the weights' dtype."""
        x_TD = x_TD.to(self.dtype)
        gate_TF = functional.linear(x_TD, self.gate_proj[expert])
        up_TF = functional.linear(x_TD, self.up_proj[expert])
        return functional.silu(gate_TF, inplace=True).mul_(up_TF)

    def project(self, expert: int, hidden_TF: torch.Tensor) -> torch.Tensor:
        """f_expert(x) from ``hidden``, float32 ``[T, D]``."""
        return functional.linear(hidden_TF, self.down_proj[expert]).float()

    def output(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """f_expert(x), float32 ``[T, D]``."""
        return self.project(expert, self.hidden(expert, x_TD))

    def every_output(self, x_TD: torch.Tensor) -> torch.Tensor:
        """All experts on all tokens, float32 ``[E, T, D]``."""
        x_TD = x_TD.to(self.dtype)
        return torch.stack([self.output(expert, x_TD) for expert in range(len(self))])

    def routed(
        self,
        x_TD: torch.Tensor,
        weights_TK: torch.Tensor,
        ids_TK: torch.Tensor,
        keep_TK: torch.Tensor,
    ) -> torch.Tensor:
        """The block's output, float32 ``[T, D]``; only what ``keep_TK`` says is computed."""
        y_TD = torch.zeros(x_TD.shape, dtype=torch.float32)
        x_TD = x_TD.to(self.dtype)
        for expert in range(len(self)):
            token, slot = ((ids_TK == expert) & keep_TK).nonzero(as_tuple=True)
            if len(token):
                # An expert has a token at most once; index_add_ is ten times slower here.
                y_TD[token] += self.output(expert, x_TD[token]) * weights_TK[token, slot, None]
        return y_TD
