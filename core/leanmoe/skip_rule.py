"""Which of a token's routed experts are skipped: three rules behind the same levels.

A layer's beta lies in [0, 1] under every rule; at 0 every expert stays, at 1 one does, and under
``ratio`` and ``norm`` whatever equals it. Of a token with weights w and k routed experts,

- ``ratio`` keeps expert j when w_j >= beta * w_max (NAEE, arXiv 2402.14800);
- ``topk`` keeps the k' largest weights, k' = k - round(beta * (k - 1)), whatever they are;
- ``norm`` keeps expert j when w_j f_j >= beta * max(w f), where f_j is the mean norm of what expert
  j puts out on calibration text.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

from pydantic import Field

# An expert's factor under the norm rule; what float32 cannot hold is none.
Factor = Annotated[float, Field(ge=1e-30, le=1e30, allow_inf_nan=False)]


class SkipRule(StrEnum):
    """What a beta means."""

    RATIO = "ratio"
    TOPK = "topk"
    NORM = "norm"


def slots_kept(beta: float, top_k: int) -> int:
    """How many of ``top_k`` experts the static rule keeps; halves are rounded towards skipping."""
    return top_k - math.floor(beta * (top_k - 1) + 0.5)


def threshold_of(rule: SkipRule, beta: float, top_k: int) -> float:
    """A rule and its beta as the one number that a layer's table holds.

    From 0 to 1 it is the beta of ``ratio``, below 0 that of ``norm`` with its sign changed, and
    from 2 on one more than the experts that ``topk`` keeps. 0 keeps everything, by any rule.
    """
    beta = min(max(beta, 0.0), 1.0)
    if rule is SkipRule.NORM:
        return -beta if beta else 0.0
    if rule is SkipRule.TOPK:
        kept = slots_kept(beta, top_k)
        return 0.0 if kept >= top_k else 1.0 + kept
    return beta
