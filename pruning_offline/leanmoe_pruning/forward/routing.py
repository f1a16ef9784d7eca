"""The router's arithmetic: softmax over all experts, top-k, skipping, renormalising.

T tokens, E experts, K top-k. Pruning masks logits with -inf before the softmax,
which equals deleting the router's rows (NAEE, arXiv 2402.14800).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leanmoe.families import MoEShape


@dataclass(frozen=True)
class RouterRule:
    """How router logits become chosen experts and their weights."""

    top_k: int
    renormalize: bool

    @classmethod
    def of(cls, shape: MoEShape) -> RouterRule:
        return cls(shape.top_k, shape.renormalize)


@dataclass(frozen=True)
class Routing:
    """Chosen experts per token, largest first; weights before any skipping."""

    weights_TK: torch.Tensor
    ids_TK: torch.Tensor
    renormalize: bool

    @property
    def ratios(self) -> torch.Tensor:
        """w_j / w_max; the first column is 1."""
        return self.weights_TK / self.weights_TK[:, :1]

    def kept(self, betas_T: torch.Tensor | float) -> torch.Tensor:
        """Which assignments survive the skip rule: w_j >= beta * w_max, top-1 always. [T, K]"""
        beta = torch.as_tensor(betas_T, dtype=self.weights_TK.dtype).reshape(-1, 1)
        keep_TK = self.weights_TK >= beta * self.weights_TK[:, :1]
        keep_TK[:, 0] = True
        return keep_TK

    def applied(self, keep_TK: torch.Tensor | None = None) -> torch.Tensor:
        """Weights the expert outputs are multiplied by; skipped ones are 0. [T, K]"""
        weights_TK = self.weights_TK if keep_TK is None else self.weights_TK * keep_TK
        if not self.renormalize:
            return weights_TK
        return weights_TK / weights_TK.sum(-1, keepdim=True)


def route(logits_TE: torch.Tensor, rule: RouterRule, kept: Sequence[int] | None = None) -> Routing:
    """Route tokens among the ``kept`` experts (all where ``None``)."""
    logits_TE = logits_TE.float()
    if kept is not None:
        pruned = torch.ones(logits_TE.shape[-1], dtype=torch.bool)
        pruned[list(kept)] = False
        logits_TE = logits_TE.masked_fill(pruned, float("-inf"))
    top_TK, ids_TK = logits_TE.topk(rule.top_k, dim=-1)
    if rule.renormalize:
        # The same as renormalising the full softmax, and the same bits whatever else is masked:
        # subsets that leave a token's routing alone tie exactly.
        weights_TK = torch.softmax(top_TK, dim=-1)
    else:
        weights_TK = torch.softmax(logits_TE, dim=-1).gather(-1, ids_TK)
    return Routing(weights_TK, ids_TK, rule.renormalize)
