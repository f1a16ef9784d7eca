"""How far a layer's output moved: CD-MoE's Jensen-Shannon divergence (arXiv 2412.00069).

Each token's hidden vector becomes a distribution by a softmax over its channels (not over
the vocabulary). T tokens, D model.
"""

from __future__ import annotations

import math

import torch

EPSILON = 1e-10


def channel_shares(hidden_TD: torch.Tensor) -> torch.Tensor:
    """Softmax over the channels of each token's vector, float32, ``EPSILON`` added."""
    return hidden_TD.float().softmax(-1).add_(EPSILON)


def divergence(p_TD: torch.Tensor, q_TD: torch.Tensor) -> torch.Tensor:
    """0.5 KL(p, m) + 0.5 KL(q, m) in nats with m = (p + q) / 2, float64 ``[T]``.

    It cannot be negative; what rounding leaves below zero is zero, so that a sum over tokens
    never falls. Where a vector overflowed it is the largest there is, ln 2.
    """
    log_m_TD = (p_TD + q_TD).mul_(0.5).log_()
    p_part_TD = (p_TD.log() - log_m_TD).mul_(p_TD)
    q_part_TD = (q_TD.log() - log_m_TD).mul_(q_TD)
    found_T = p_part_TD.add_(q_part_TD).sum(-1).double().mul_(0.5)
    return found_T.nan_to_num_(nan=math.log(2)).clamp_min_(0.0)
