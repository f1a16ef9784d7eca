"""The decisions of skip/cpu.c made a second time, from the same rules, to check counts.

``listen_to_all`` runs in a worker (``recounter.py``); eager mode only, because it listens to the
routers. Used by ``leanmoe bench soak``, by the check of the device's budget and by tests.
T tokens, K top-k, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe_runtime.compat import get_forward_context
from leanmoe_runtime.runner import LeanRunner
from leanmoe_runtime.skip.cpu import Budget
from leanmoe_runtime.skip.rule import kept, scores
from leanmoe_runtime.state import MANDATORY, LayerState

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Flags = NDArray[np.bool_]
_ROW_MASK = MANDATORY - 1


class Decision(NamedTuple):
    """Weights of every expert ``[T, E]`` before renormalising, and what moved to another one."""

    weights_TE: Floats
    moved: int


@dataclass
class Recounted:
    """The fields of ``leanmoe.messages.LayerCounts``, added up anew."""

    tokens: int = 0
    skipped: int = 0
    substituted: int = 0
    steps: int = 0
    distinct_experts: int = 0
    skipped_weight: float = 0.0
    nonfinite: int = 0

    def add(self, weights_TK: Floats, finite_T: Flags, decision: Decision) -> None:
        """Count one step."""
        chosen_TE = decision.weights_TE != 0
        kept_T = np.where(finite_T, chosen_TE.sum(1), weights_TK.shape[1])
        self.tokens += len(weights_TK)
        self.steps += 1
        self.skipped += int((weights_TK.shape[1] - kept_T).sum())
        self.substituted += decision.moved
        self.distinct_experts += int(chosen_TE.any(0).sum())
        self.nonfinite += int((~finite_T).sum())


def loaded_experts(
    weights_TK: Floats,
    ids_TK: Ids,
    keep_TK: Flags,
    bound_T: Flags,
    top_T: Ids,
    budget: int,
    experts: int,
) -> Flags:
    """The experts ``[E]`` that a step may read: mandatory ones, then the heaviest.

    ``top_T`` is each token's best slot.
    """
    loaded_E = np.zeros(experts, dtype=bool)
    loaded_E[ids_TK[np.arange(len(ids_TK)), top_T]] = True
    loaded_E[ids_TK[keep_TK & bound_T[:, None]]] = True
    mass_E = np.zeros(experts, dtype=np.float32)
    np.add.at(mass_E, ids_TK[keep_TK], weights_TK[keep_TK])
    mass_E[loaded_E] = 0
    free = max(0, budget - int(loaded_E.sum()))
    heaviest = [e for e in np.argsort(-mass_E, kind="stable")[:free] if mass_E[e] > 0]
    loaded_E[heaviest] = True
    return loaded_E


def decide(
    weights_TK: Floats,
    ids_TK: Ids,
    betas_T: Floats,
    bound_T: Flags,
    experts: int,
    budget: int | None = None,
    logits_TE: Floats | None = None,
    factors_E: Floats | None = None,
) -> Decision:
    """What each token keeps; with ``logits_TE`` the budget moves assignments.

    ``factors_E`` are those of the norm rule, 1 where ``None``.
    """
    if factors_E is None:
        factors_E = np.ones(experts, dtype=np.float32)
    keep_TK, top_T = _judged(weights_TK, ids_TK, betas_T, factors_E)
    loaded_E = np.ones(experts, dtype=bool)
    if budget is not None:
        loaded_E = loaded_experts(weights_TK, ids_TK, keep_TK, bound_T, top_T, budget, experts)
    stays_TK = keep_TK & (bound_T[:, None] | loaded_E[ids_TK])
    found_TE = np.zeros((len(ids_TK), experts), dtype=np.float32)
    rows, slots = np.nonzero(stays_TK)
    found_TE[rows, ids_TK[rows, slots]] = weights_TK[rows, slots]
    lost_T = (keep_TK & ~stays_TK).sum(1)
    moved = 0
    if logits_TE is not None:
        for row in np.nonzero(lost_T)[0]:
            top = ids_TK[row, top_T[row]]
            ratios_E = np.exp(logits_TE[row] - logits_TE[row, top])
            stays_E = _stays(ratios_E, factors_E, betas_T[row], top)
            top_weight = weights_TK[row, top_T[row]]
            moved += _move(found_TE[row], ratios_E, loaded_E, stays_E, top_weight, lost_T[row])
    return Decision(found_TE, moved)


def _judged(
    weights_TK: Floats, ids_TK: Ids, betas_T: Floats, factors_E: Floats
) -> tuple[Flags, Ids]:
    """What each token's rule keeps, and its best slot."""
    betas = torch.from_numpy(betas_T)
    judged = scores(torch.from_numpy(weights_TK), betas, torch.from_numpy(factors_E[ids_TK]))
    return kept(judged, betas).numpy(), judged.numpy().argmax(1).astype(np.int32)


def _stays(ratios_E: Floats, factors_E: Floats, beta: np.float32, top: int) -> Flags:
    """The experts that the rule keeps at their weight relative to the best one's."""
    if beta > 1:
        return ratios_E > 0
    factors_E = factors_E if beta < 0 else np.ones_like(factors_E)
    stays_E: Flags = (ratios_E > 0) & (ratios_E * factors_E >= abs(beta) * factors_E[top])
    return stays_E


def _move(
    found_E: Floats,
    ratios_E: Floats,
    loaded_E: Flags,
    stays_E: Flags,
    top_weight: np.float32,
    lost: int,
) -> int:
    """Give ``lost`` assignments of one token to the best loaded experts it does not have."""
    moved = 0
    for _ in range(lost):
        free = np.nonzero(loaded_E & (found_E == 0))[0]
        if not len(free):
            break
        best = free[ratios_E[free].argmax()]
        if not stays_E[best]:
            break
        found_E[best] = ratios_E[best] * top_weight
        moved += 1
    return moved


def listen_to_all(vllm_config: Any) -> tuple[dict[int, Recounted], int]:
    """Listen to every layer that can skip: what will be counted of each, and how many they are."""
    recounted: dict[int, Recounted] = {}
    context = vllm_config.compilation_config.static_forward_context
    runners = [r for r in context.values() if isinstance(r, LeanRunner) and not r.condensed]
    for runner in runners:
        assert runner.skip_state is not None
        counted = recounted.setdefault(runner.skip_state.layer, Recounted())
        _listen(runner, runner.skip_state, counted)
    return recounted, len(runners)


def _listen(runner: LeanRunner, state: LayerState, counted: Recounted) -> None:
    router, experts = runner.router, runner.routed_experts
    stock: Callable[..., tuple[torch.Tensor, torch.Tensor]] = router._compute_routing

    def compute_routing(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        weights_TK, ids_TK = stock(hidden_states, *args, **kwargs)
        if get_forward_context().attn_metadata is not None:
            rows_T, budget = experts.engine.state.token_rows_T, experts.budget(hidden_states)
            _count(weights_TK, ids_TK, rows_T, budget, state, counted)
        return weights_TK, ids_TK

    router._compute_routing = compute_routing


def _count(
    weights: torch.Tensor,
    ids: torch.Tensor,
    token_rows: torch.Tensor | None,
    budget: Budget | None,
    state: LayerState,
    counted: Recounted,
) -> None:
    weights_TK, ids_TK = weights.float().numpy().copy(), ids.int().numpy()
    rows_T = np.zeros(len(weights_TK), np.int32) if token_rows is None else token_rows.numpy()
    finite_T = np.isfinite(weights_TK.sum(1))
    betas_T = np.where(finite_T, state.betas.numpy()[rows_T & _ROW_MASK], 0).astype(np.float32)
    bound_T = (rows_T & MANDATORY).astype(bool) | ~finite_T
    weights_TK[~finite_T] = 1.0
    most, logits = (None, None) if budget is None else budget
    logits_TE = None if logits is None else logits.float().numpy()
    decision = decide(
        *(weights_TK, ids_TK, betas_T, bound_T, state.n_experts, most, logits_TE),
        factors_E=state.factors.numpy(),
    )
    counted.add(weights_TK, finite_T, decision)
    counted.skipped_weight += _dropped(weights_TK, ids_TK, decision)


def _dropped(weights_TK: Floats, ids_TK: Ids, decision: Decision) -> float:
    """Gate weight of skipped assignments; a moved one is none, whichever it was."""
    kept_TK = np.take_along_axis(decision.weights_TE, ids_TK.astype(np.int64), 1) != 0
    if decision.moved:
        return float("nan")  # which of a token's lost assignments moved is not told apart
    total_T = weights_TK.sum(1, dtype=np.float64)
    return float(((weights_TK * ~kept_TK).sum(1, dtype=np.float64) / total_T).sum())
