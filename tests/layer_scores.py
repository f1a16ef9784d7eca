"""Layer scores of which a test needs only logits and Gram matrices."""

from __future__ import annotations

import torch

from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.moments import Moments


def bare_scores(rule: RouterRule, logits: torch.Tensor, gram: torch.Tensor) -> LayerScores:
    """Layer 0 with every other statistic zero."""
    tokens, experts = logits.shape
    return LayerScores(
        layer=0,
        rule=rule,
        router_logits_TE=logits,
        output_gram_TP=gram,
        output_norm_TK=torch.zeros(tokens, rule.top_k),
        max_activation_E=torch.zeros(experts),
        moments=Moments.zeros(experts, 1, 1),
    )
