"""Plans at one beta for every token, as most tests want them, and the rule without a plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.skip.cpu import REDIRECT_MAX_ROWS, Plan, Planner
from leanmoe_runtime.skip.rule import decide
from leanmoe_runtime.state import LayerState

N_EXPERTS = 8


def layer_of(
    betas: Sequence[float], renormalize: bool, top_k: int = 2, n_experts: int = N_EXPERTS
) -> LayerState:
    """A layer whose table of betas begins with ``betas``."""
    layer = LayerState(layer=0, top_k=top_k, renormalize=renormalize, n_experts=n_experts)
    layer.betas[: len(betas)] = torch.tensor(betas)
    return layer


def plan_of(
    planner: Planner,
    weights: torch.Tensor,
    ids: torch.Tensor,
    beta: float,
    renormalize: bool,
    redirect_max_rows: int = REDIRECT_MAX_ROWS,
) -> tuple[int, Plan | None]:
    """(Assignments skipped, plan)."""
    layer = layer_of([beta], renormalize, weights.shape[1])
    plan = planner.plan(weights, ids, layer, redirect_max_rows=redirect_max_rows)
    return layer.counters.skipped, plan


def masked(
    weights: torch.Tensor,
    betas: Sequence[float],
    renormalize: bool,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Kept weights [T, K], keep mask [T, K]) by the plain rule; skipped weights are zero."""
    made = decide(
        weights,
        torch.zeros(weights.shape, dtype=torch.int32),
        torch.tensor(betas),
        torch.zeros(len(weights), dtype=torch.int32) if rows is None else rows,
        renormalize=renormalize,
        mode=SkipMode.ZERO,
    )
    return made.weights_TK, made.keep_TK
