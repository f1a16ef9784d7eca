"""Second moments of what a layer's expert matrices are multiplied with.

T tokens, K top-k, E experts, D model, F expert hidden, N windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import Routing


@dataclass(frozen=True)
class Moments:
    """Sums over the tokens routed to each expert, float64; ``gated`` ones times g squared.

    ``input`` is the block's input x, ``hidden`` what down_proj is multiplied with. ``all_``
    are sums over every token, routed or not; ``all_hidden`` holds only experts that no token
    was routed to. ``calls`` are the windows in which an expert was used.
    """

    input_ED: torch.Tensor
    gated_input_ED: torch.Tensor
    hidden_EF: torch.Tensor
    gated_hidden_EF: torch.Tensor
    all_input_D: torch.Tensor
    calls_E: torch.Tensor
    tokens_E: torch.Tensor
    all_hidden: dict[int, torch.Tensor]

    @classmethod
    def empty(cls, experts: Experts) -> Moments:
        wide, narrow = experts.gate_proj[0].shape
        count = len(experts)

        def zeros(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.float64)

        whole = torch.zeros(count, dtype=torch.int64)
        return cls(
            zeros(count, narrow),
            zeros(count, narrow),
            zeros(count, wide),
            zeros(count, wide),
            zeros(narrow),
            whole,
            whole.clone(),
            {},
        )

    def add(self, experts: Experts, x_TD: torch.Tensor, routing: Routing, windows: int) -> None:
        """Add the tokens of some whole windows, their routing known."""
        weights_TK = routing.applied()
        self.all_input_D.add_(x_TD.square().sum(0).double())
        for expert in range(len(experts)):
            chosen_TK = routing.ids_TK == expert
            token, slot = chosen_TK.nonzero(as_tuple=True)
            if len(token) == 0:
                continue
            ones_n = torch.ones(len(token))
            both_2n = torch.stack([ones_n, weights_TK[token, slot].square()])
            x_nD = x_TD[token]
            self._add_rows(expert, both_2n, x_nD, experts.hidden(expert, x_nD))
            used_N = chosen_TK.view(windows, -1).any(1)
            self.calls_E[expert] += used_N.sum()
            self.tokens_E[expert] += len(token)

    def _add_rows(
        self, expert: int, both_2n: torch.Tensor, x_nD: torch.Tensor, hidden_nF: torch.Tensor
    ) -> None:
        plain_D, gated_D = (both_2n @ x_nD.square()).double()
        plain_F, gated_F = (both_2n @ hidden_nF.float().square()).double()
        self.input_ED[expert] += plain_D
        self.gated_input_ED[expert] += gated_D
        self.hidden_EF[expert] += plain_F
        self.gated_hidden_EF[expert] += gated_F

    @property
    def unrouted(self) -> list[int]:
        """Experts that no token was routed to."""
        return (self.tokens_E == 0).nonzero().flatten().tolist()

    def add_unrouted(self, experts: Experts, inputs: Iterable[torch.Tensor]) -> None:
        """Give experts without tokens the moments of all; ``inputs`` are chunks ``[T, D]``."""
        unrouted = self.unrouted
        if not unrouted:
            return
        for x_TD in inputs:
            for expert in unrouted:
                found_F = experts.hidden(expert, x_TD).float().square().sum(0).double()
                self.all_hidden[expert] = self.all_hidden.get(expert, 0) + found_F
