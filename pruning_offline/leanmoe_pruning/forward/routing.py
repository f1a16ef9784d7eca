"""The router's arithmetic: scores, groups, top-k, skipping, renormalising, scaling.

T tokens, E experts, K top-k. What vLLM runs for each family is what is computed here.
Pruning masks logits with -inf before anything else, which equals deleting the router's
rows (NAEE, arXiv 2402.14800).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from leanmoe.families import MoEShape

# "mapped": logits that are logarithms of probabilities mapped by EEP's matrix.
Scoring = Literal["softmax", "sigmoid", "sparsemixer", "mapped"]
# The width of PhiMoE's window around the best logit, half of it, as vLLM's phimoe.py has it.
_JITTER = 0.01


@dataclass(frozen=True)
class RouterRule:
    """How router logits become chosen experts and their weights."""

    top_k: int
    renormalize: bool
    scoring: Scoring = "softmax"
    # The weights are multiplied by it last (``routed_scaling_factor``).
    scale: float = 1.0
    # Only experts of the ``top_groups`` best groups of neighbours are chosen.
    n_groups: int = 1
    top_groups: int = 1
    # Added to the scores for the choice alone (``e_score_correction_bias``); groups are then
    # judged by the sum of their two best, else by their best.
    correction_E: torch.Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, shape: MoEShape, correction_E: torch.Tensor | None = None) -> RouterRule:
        """The rule of a model of this shape."""
        return cls(
            top_k=shape.top_k,
            renormalize=shape.renormalize,
            scoring=shape.scoring,
            scale=shape.routed_scale,
            n_groups=shape.n_groups,
            top_groups=shape.top_groups,
            correction_E=correction_E,
        )


@dataclass(frozen=True)
class Routing:
    """Chosen experts per token, largest weight first; weights before any skipping."""

    weights_TK: torch.Tensor
    ids_TK: torch.Tensor
    renormalize: bool
    scale: float = 1.0

    @property
    def ratios(self) -> torch.Tensor:
        """w_j / w_max; the first column is 1."""
        return self.weights_TK / self.weights_TK[:, :1]

    def kept(
        self, betas_T: torch.Tensor | float, factors_E: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Which assignments survive, by each token's threshold (``leanmoe.skip_rule``). [T, K]

        From 0 to 1 it is the published rule's beta: w_j >= beta * w_max, top-1 always.
        """
        beta = torch.as_tensor(betas_T, dtype=self.weights_TK.dtype).reshape(-1, 1)
        keep_TK = self.weights_TK >= beta * self.weights_TK[:, :1]
        keep_TK[:, 0] = True
        if bool((beta > 1).any()):
            slot_K = torch.arange(self.weights_TK.shape[1])
            keep_TK = torch.where(beta > 1, slot_K < beta - 1, keep_TK)
        if factors_E is not None and bool((beta < 0).any()):
            keep_TK = torch.where(beta < 0, self._kept_by_norm(-beta, factors_E), keep_TK)
        return keep_TK

    def judged(self, factors_E: torch.Tensor) -> torch.Tensor:
        """w_j f_j: what the norm rule judges by. [T, K]"""
        return self.weights_TK * factors_E.to(self.weights_TK.dtype)[self.ids_TK]

    def _kept_by_norm(self, beta_T1: torch.Tensor, factors_E: torch.Tensor) -> torch.Tensor:
        judged_TK = self.judged(factors_E)
        top_T1 = judged_TK.amax(dim=-1, keepdim=True)
        return (judged_TK >= beta_T1 * top_T1) | (judged_TK == top_T1)

    def applied(self, keep_TK: torch.Tensor | None = None) -> torch.Tensor:
        """Weights the expert outputs are multiplied by; skipped ones are 0. [T, K]"""
        weights_TK = self.weights_TK if keep_TK is None else self.weights_TK * keep_TK
        if self.renormalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return weights_TK if self.scale == 1.0 else weights_TK * self.scale


def route(logits_TE: torch.Tensor, rule: RouterRule, kept: Sequence[int] | None = None) -> Routing:
    """Route tokens among the ``kept`` experts (all where ``None``); -inf is never chosen."""
    logits_TE = logits_TE.float()
    if kept is not None:
        pruned = torch.ones(logits_TE.shape[-1], dtype=torch.bool)
        pruned[list(kept)] = False
        logits_TE = logits_TE.masked_fill(pruned, float("-inf"))
    if rule.scoring == "sparsemixer":
        weights_TK, ids_TK = _largest_first(*_sparsemixer(logits_TE))
    else:
        ids_TK = _judged(logits_TE, rule).topk(rule.top_k, dim=-1).indices
        weights_TK = _weights(logits_TE, ids_TK, rule)
        if rule.correction_E is not None:
            weights_TK, ids_TK = _largest_first(weights_TK, ids_TK)
    return Routing(weights_TK, ids_TK, rule.renormalize, rule.scale)


def route_mapped(mapped_TE: torch.Tensor, rule: RouterRule) -> Routing:
    """Route by mapped probabilities as EEP's published code does (arXiv 2407.00945).

    ``mapped_TE`` is W softmax(l), of any sign and not clamped; the runtime serves it clamped at
    the smallest positive number (``DecoderLayer.router_logits``), the same where the chosen are
    positive.
    """
    weights_TK, ids_TK = mapped_TE.float().topk(rule.top_k, dim=-1)
    return Routing(weights_TK, ids_TK, rule.renormalize, rule.scale)


def _judged(logits_TE: torch.Tensor, rule: RouterRule) -> torch.Tensor:
    """What the top-k is taken of: all scorings grow with the logit, a correction does not."""
    if rule.correction_E is None:
        judged_TE = logits_TE
    else:
        # A pruned expert's score of zero could win by its correction.
        judged_TE = _scores(logits_TE, rule) + rule.correction_E
        judged_TE = judged_TE.masked_fill(logits_TE == float("-inf"), float("-inf"))
    if rule.n_groups == 1:
        return judged_TE
    grouped = judged_TE.view(len(judged_TE), rule.n_groups, -1)
    two = rule.correction_E is not None
    best = grouped.topk(2, dim=-1).values.sum(-1) if two else grouped.amax(-1)
    chosen = best.topk(rule.top_groups, dim=-1).indices
    passed_over = torch.ones_like(best, dtype=torch.bool).scatter_(-1, chosen, False)
    return grouped.masked_fill(passed_over[..., None], float("-inf")).flatten(1)


def _scores(logits_TE: torch.Tensor, rule: RouterRule) -> torch.Tensor:
    if rule.scoring == "mapped":
        return logits_TE.exp()
    return logits_TE.sigmoid() if rule.scoring == "sigmoid" else logits_TE.softmax(-1)


def _weights(logits_TE: torch.Tensor, ids_TK: torch.Tensor, rule: RouterRule) -> torch.Tensor:
    if rule.renormalize and rule.scoring != "sigmoid":
        # The same as renormalising the full softmax, and the same bits whatever else is masked:
        # subsets that leave a token's routing alone tie exactly.
        return torch.softmax(logits_TE.gather(-1, ids_TK), dim=-1)
    return _scores(logits_TE, rule).gather(-1, ids_TK)


def _largest_first(
    weights_TK: torch.Tensor, ids_TK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    weights_TK, order_TK = weights_TK.sort(dim=-1, descending=True, stable=True)
    return weights_TK, ids_TK.gather(-1, order_TK)


def _sparsemixer(logits_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PhiMoE's two experts in turn, each weighed against the logits close to its own."""
    first_T1, first = _mixed(logits_TE, logits_TE)
    rest_TE = logits_TE.scatter(-1, first, float("-inf"))
    second_T1, second = _mixed(logits_TE, rest_TE)
    return torch.cat([first_T1, second_T1], dim=-1), torch.cat([first, second], dim=-1)


def _mixed(logits_TE: torch.Tensor, left_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best_T1, id_T1 = left_TE.max(dim=-1, keepdim=True)
    far_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1) > 2 * _JITTER
    near_TE = left_TE.masked_fill(far_TE, float("-inf"))
    return near_TE.softmax(-1).gather(-1, id_T1), id_T1
