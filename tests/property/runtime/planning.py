"""A plan at one beta for every token, as most tests want it."""

from __future__ import annotations

import torch

from leanmoe_runtime.drop import REDIRECT_MAX_ROWS, Plan, Planner


def plan_of(
    planner: Planner,
    weights: torch.Tensor,
    ids: torch.Tensor,
    beta: float,
    renormalize: bool,
    redirect_max_rows: int = REDIRECT_MAX_ROWS,
) -> Plan:
    return planner.plan(weights, ids, torch.tensor([beta]), renormalize, redirect_max_rows)
