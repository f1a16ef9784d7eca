"""Losses of sets of experts, each one expert smaller than a set that is looked at.

With many experts a token notices few removals: where routing depends on the chosen experts
alone, only tokens routed to the removed one are looked at again. C candidates, T tokens
that have a Gram matrix, N routings that change, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leanmoe_pruning.forward.routing import RouterRule, Routing, route
from leanmoe_pruning.scores.gram import row_distance, target_product
from leanmoe_pruning.scores.layer_scores import LayerScores

_MAX_LOGITS = 1 << 24  # of changed routings held at a time


class Removals:
    """One layer's tokens, ready to say what a removal loses."""

    def __init__(self, scores: LayerScores, batch_of_T: torch.Tensor) -> None:
        """``batch_of_T`` is the batch of every token scored, not of the sampled ones alone."""
        self.n_experts = scores.n_experts
        self._rule = scores.rule
        self._gram_TP = scores.output_gram_TP
        self._logits_TE = scores.router_logits_TE[scores.gram_tokens].float()
        self._batch_of_T = batch_of_T[scores.gram_tokens]

    def losses(self, kept: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        """Loss of ``kept`` without each of the ``candidates``, float64 ``[C]``."""
        logits_TE = self._masked(kept)
        routing = route(logits_TE, self._rule)
        candidates_C = torch.tensor(candidates)
        squared_CT = self._untouched(logits_TE, routing, candidates_C)
        # By token: the routings of one read the same Gram matrix.
        token_N, place_N = self._touched(routing, candidates_C).nonzero(as_tuple=True)
        for rows in torch.split(torch.arange(len(token_N)), _MAX_LOGITS // self.n_experts):
            place, token = place_N[rows], token_N[rows]
            logits_NE = logits_TE[token].scatter_(-1, candidates_C[place, None], float("-inf"))
            changed = route(logits_NE, self._rule)
            squared_CT[place, token] = self._distance(token, changed)
        return self._summed(squared_CT)

    def loss(self, kept: Sequence[int]) -> float:
        """Loss of ``kept`` itself."""
        routing = route(self._masked(kept), self._rule)
        squared_T = self._distance(torch.arange(len(self._batch_of_T)), routing)
        return float(self._summed(squared_T[None]))

    def _masked(self, kept: Sequence[int]) -> torch.Tensor:
        absent_E = torch.ones(self.n_experts, dtype=torch.bool)
        absent_E[list(kept)] = False
        return self._logits_TE.masked_fill(absent_E, float("-inf"))

    def _touched(self, routing: Routing, candidates_C: torch.Tensor) -> torch.Tensor:
        """Which candidates may change which tokens' choice of experts, ``[T, C]``."""
        if not _is_local(self._rule):
            return torch.ones(len(routing.ids_TK), len(candidates_C), dtype=torch.bool)
        used_TE = torch.zeros(self._logits_TE.shape, dtype=torch.bool)
        return used_TE.scatter_(1, routing.ids_TK, True)[:, candidates_C]

    def _untouched(
        self, logits_TE: torch.Tensor, routing: Routing, candidates_C: torch.Tensor
    ) -> torch.Tensor:
        """Squared distances ``[C, T]`` where the choice of experts stays the same."""
        every_T = torch.arange(len(self._batch_of_T))
        if not _shares_all(self._rule):
            return self._distance(every_T, routing).repeat(len(candidates_C), 1)
        # The removed expert's share of the softmax goes to all others, so outputs grow by as much.
        share_TC = logits_TE.double().softmax(-1)[:, candidates_C]
        # A token routed to a candidate that has all of the softmax is looked at again anyway.
        return self._grown(routing, 1.0 / (1.0 - share_TC.T).clamp_min(1e-12))

    def _grown(self, routing: Routing, factor_CT: torch.Tensor) -> torch.Tensor:
        """Squared distances ``[C, T]`` of the same choice with all weights multiplied.

        |s v + (s - 1) z|^2 with v the distance of the weighted mean, s the sum of weights.
        """
        weights_TK, every_T = routing.applied().double(), torch.arange(len(routing.ids_TK))
        sum_T = weights_TK.sum(-1)
        mean_TK = weights_TK / sum_T[:, None]
        ids_TK, n = routing.ids_TK, self.n_experts
        square_T = row_distance(self._gram_TP, every_T, mean_TK, ids_TK, n)
        product_T = target_product(self._gram_TP, mean_TK, ids_TK, n)
        sum_CT = sum_T * factor_CT
        over_CT = sum_CT - 1.0
        target_T = self._gram_TP[:, -1]
        squared_CT = sum_CT**2 * square_T + 2.0 * sum_CT * over_CT * product_T
        return (squared_CT + over_CT**2 * target_T).clamp_min(0.0)

    def _distance(self, token_N: torch.Tensor, routing: Routing) -> torch.Tensor:
        weights_NK, ids_NK = routing.applied(), routing.ids_TK
        return row_distance(self._gram_TP, token_N, weights_NK, ids_NK, self.n_experts)

    def _summed(self, squared_CT: torch.Tensor) -> torch.Tensor:
        n_batches = int(self._batch_of_T[-1]) + 1
        sums_CB = torch.zeros(len(squared_CT), n_batches, dtype=torch.float64)
        sums_CB.scatter_add_(1, self._batch_of_T.expand(len(squared_CT), -1), squared_CT)
        return sums_CB.sqrt().sum(1)


def _is_local(rule: RouterRule) -> bool:
    """Whether removing an expert leaves the choice of tokens not routed to it alone."""
    alone = rule.scoring == "sigmoid" or (rule.scoring == "softmax" and rule.correction_E is None)
    return alone and rule.n_groups == 1


def _shares_all(rule: RouterRule) -> bool:
    """Whether every expert's logit has a part in every token's weights."""
    return rule.scoring == "softmax" and not rule.renormalize
