"""One number per expert, by which the lowest are pruned.

Every saliency is a function of a layer's scores and costs no forward pass. An expert that no
token was routed to has saliency 0. T tokens, E experts, K top-k; g is an expert's gate weight
for a token, n the L2 norm of its unweighted output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from leanmoe_pruning.forward.routing import route
from leanmoe_pruning.scores.layer_scores import LayerScores

# ``model``: what outputs are multiplied by. ``renorm``: the same over its sum per token.
# ``raw``: the router's score before any renormalising, whatever the model does.
GATES = ("model", "renorm", "raw")
Saliency = Callable[[LayerScores, str], torch.Tensor]


def gate_weights(scores: LayerScores, gate: str) -> torch.Tensor:
    """g of every routed assignment, ``[T, K]``."""
    if gate == "model":
        return scores.routing().applied()
    rule = replace(scores.rule, renormalize=gate == "renorm")
    return route(scores.router_logits_TE, rule).applied()


def per_expert(scores: LayerScores, values_TK: torch.Tensor) -> torch.Tensor:
    """Sums over the tokens routed to each expert, float64 ``[E]``."""
    total_E = torch.zeros(scores.n_experts, dtype=torch.float64)
    return total_E.index_add_(0, scores.routing().ids_TK.flatten(), values_TK.double().flatten())


def mean_of(scores: LayerScores, total_E: torch.Tensor) -> torch.Tensor:
    """Sums over the tokens of each expert as means; 0 where there were none."""
    return total_E / scores.token_counts().clamp_min(1)


def frequency(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """Tokens routed to the expert."""
    return scores.token_counts().double()


def soft_activation(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """The softmax of the router's logits over all experts, its mean over all tokens.

    A rival of EEP (arXiv 2407.00945, table 1: soft activation), which gives no formula; a
    soft count of activations as in SEER-MoE (arXiv 2404.05089).
    """
    return scores.router_logits_TE.double().softmax(-1).mean(0)


def ean(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """Mean of n over the expert's tokens: its activation norm, whatever the gate thinks.

    The scoring study's choice where no task is given (arXiv 2606.15716: MAN).
    """
    return mean_of(scores, per_expert(scores, scores.output_norm_TK))


def msan(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """Mean of n^2 over the expert's tokens (arXiv 2606.15716: MSAN)."""
    return mean_of(scores, per_expert(scores, scores.output_norm_TK.double().square()))


def weighted_ean(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """Sum of g * n over the expert's tokens: frequency and gate count (arXiv 2606.15716)."""
    return per_expert(scores, gate_weights(scores, gate) * scores.output_norm_TK)


def reap(scores: LayerScores, gate: str = "model") -> torch.Tensor:
    """Mean of g * n over the expert's tokens (REAP, arXiv 2510.13999)."""
    return mean_of(scores, weighted_ean(scores, gate))


SALIENCIES: Mapping[str, Saliency] = {
    "frequency": frequency,
    "soft-activation": soft_activation,
    "ean": ean,
    "man": ean,
    "msan": msan,
    "weighted-ean": weighted_ean,
    "reap": reap,
}


def highest(saliency: Sequence[float], keep: int, n_groups: int = 1) -> tuple[int, ...]:
    """The ``keep`` experts of highest saliency, as many of each group, ascending.

    Of equal ones the lower number stays.
    """
    size, share = len(saliency) // n_groups, keep // n_groups
    kept: list[int] = []
    for start in range(0, len(saliency), size):
        members = range(start, start + size)
        kept += sorted(members, key=lambda expert: (-saliency[expert], expert))[:share]
    return tuple(sorted(kept))
