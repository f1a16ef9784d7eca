"""Plans at one beta for every token, as most tests want them, and the rule without a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from leanmoe.messages import SkipMode
from leanmoe.skip_rule import SkipRule, threshold_of
from leanmoe_runtime.skip.cpu import REDIRECT_MAX_ROWS, Plan, Planner
from leanmoe_runtime.skip.rule import decide
from leanmoe_runtime.state import LayerState

N_EXPERTS = 8
# Equal ones, so that scores tie, and such as turn the order of weights around.
FACTORS = np.array([1.0, 1.0, 0.5, 2.0, 1.7, 3e-3], dtype=np.float32)


def thresholds(top_k: int, rule: SkipRule | None = None) -> st.SearchStrategy[float]:
    """What a row of the table holds: a beta of ``rule``, or of any."""
    rules = st.sampled_from(SkipRule) if rule is None else st.just(rule)
    betas = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0]))
    return st.builds(threshold_of, rules, betas, st.just(top_k))


def layer_of(
    betas: Sequence[float],
    renormalize: bool,
    top_k: int = 2,
    n_experts: int = N_EXPERTS,
    factors: Sequence[float] = (),
) -> LayerState:
    """A layer whose table of betas begins with ``betas``."""
    layer = LayerState(layer=0, top_k=top_k, renormalize=renormalize, n_experts=n_experts)
    layer.betas[: len(betas)] = torch.tensor(betas)
    layer.set_factors(factors)
    return layer


def plan_of(
    planner: Planner,
    weights: torch.Tensor,
    ids: torch.Tensor,
    beta: float,
    renormalize: bool,
    redirect_max_rows: int = REDIRECT_MAX_ROWS,
    factors: Sequence[float] = (),
) -> tuple[int, Plan | None]:
    """(Assignments skipped, plan)."""
    layer = layer_of([beta], renormalize, weights.shape[1], factors=factors)
    plan = planner.plan(weights, ids, layer, redirect_max_rows=redirect_max_rows)
    return layer.counters.skipped, plan


def masked(
    weights: torch.Tensor,
    betas: Sequence[float],
    renormalize: bool,
    rows: torch.Tensor | None = None,
    ids: torch.Tensor | None = None,
    factors: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Kept weights [T, K], keep mask [T, K]) by the plain rule; skipped weights are zero."""
    made = decide(
        weights,
        torch.zeros(weights.shape, dtype=torch.int32) if ids is None else ids,
        torch.tensor(betas),
        torch.zeros(len(weights), dtype=torch.int32) if rows is None else rows,
        renormalize=renormalize,
        mode=SkipMode.ZERO,
        factors_E=torch.tensor(factors) if len(factors) else None,
    )
    return made.weights_TK, made.keep_TK
