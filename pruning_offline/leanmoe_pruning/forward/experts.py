"""Feed-forward networks: one MoE layer's experts, and the one that every token passes.

T tokens, D model, F expert hidden, E experts, K top-k. Products run in the
weights' dtype, sums over experts in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional


def swiglu(x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor) -> torch.Tensor:
    """silu(gate x) * (up x), ``[T, F]``."""
    gate_TF = functional.linear(x_TD, gate_FD)
    return functional.silu(gate_TF, inplace=True).mul_(functional.linear(x_TD, up_FD))


@dataclass(frozen=True)
class FeedForward:
    """The SwiGLU of a dense layer, or the shared expert of a MoE layer."""

    gate_proj: torch.Tensor
    up_proj: torch.Tensor
    down_proj: torch.Tensor
    # Qwen2-MoE's gate, float32 [1, D]: how much of the output each token gets.
    share_1D: torch.Tensor | None = None

    def output(self, x_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, D]``."""
        hidden_TF = swiglu(x_TD.to(self.down_proj.dtype), self.gate_proj, self.up_proj)
        output_TD = functional.linear(hidden_TF, self.down_proj).float()
        if self.share_1D is None:
            return output_TD
        return output_TD * functional.linear(x_TD, self.share_1D).sigmoid()


class OutputNorms:
    """The mean L2 norm of what each expert puts out for the tokens routed to it, unweighted."""

    def __init__(self, n_experts: int) -> None:
        self.total_E = torch.zeros(n_experts, dtype=torch.float64)
        self.tokens_E = torch.zeros(n_experts, dtype=torch.int64)

    def add(self, expert: int, output_ND: torch.Tensor) -> None:
        """Take the outputs of one expert."""
        self.total_E[expert] += output_ND.norm(dim=-1).double().sum()
        self.tokens_E[expert] += len(output_ND)

    @property
    def means(self) -> torch.Tensor:
        """float64 ``[E]``, 0 for an expert that no token reached."""
        return self.total_E / self.tokens_E.clamp_min(1)


class StandIn(Protocol):
    """What gives something else for an expert that was removed (``forward.stand_ins``)."""

    def output(self, x_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, D]``."""
        ...


@dataclass(frozen=True)
class Experts:
    """Weights by expert: gate_proj and up_proj ``[F, D]``, down_proj ``[D, F]``.

    One with a stand-in has weights of no hidden channel.
    """

    gate_proj: Sequence[torch.Tensor]
    up_proj: Sequence[torch.Tensor]
    down_proj: Sequence[torch.Tensor]
    stand_ins: Mapping[int, StandIn] = field(default_factory=dict, kw_only=True)

    @property
    def dtype(self) -> torch.dtype:
        return self.down_proj[0].dtype

    def __len__(self) -> int:
        return len(self.down_proj)

    def hidden(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """What ``down_proj`` is multiplied with, ``[T, F]`` in the weights' dtype."""
        return swiglu(x_TD.to(self.dtype), self.gate_proj[expert], self.up_proj[expert])

    def project(self, expert: int, hidden_TF: torch.Tensor) -> torch.Tensor:
        """f_expert(x) from ``hidden``, float32 ``[T, D]``."""
        return functional.linear(hidden_TF, self.down_proj[expert]).float()

    def output(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """f_expert(x), float32 ``[T, D]``."""
        if expert in self.stand_ins:
            return self.stand_ins[expert].output(x_TD.to(self.dtype))
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
        norms: OutputNorms | None = None,
    ) -> torch.Tensor:
        """The block's output, float32 ``[T, D]``; only what ``keep_TK`` says is computed.

        ``norms`` take down what every expert put out.
        """
        y_TD = torch.zeros(x_TD.shape, dtype=torch.float32)
        x_TD = x_TD.to(self.dtype)
        for expert in range(len(self)):
            token, slot = ((ids_TK == expert) & keep_TK).nonzero(as_tuple=True)
            if len(token):
                # An expert has a token at most once; index_add_ is ten times slower here.
                output_ND = self.output(expert, x_TD[token])
                if norms is not None:
                    norms.add(expert, output_ND)
                y_TD[token] += output_ND * weights_TK[token, slot, None]
        return y_TD
