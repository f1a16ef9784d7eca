"""The four ways to prune one layer's expert weights: by which score, with which correction."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights
from leanmoe_pruning.methods.weights.norms import ColumnNorms
from leanmoe_pruning.methods.weights.pattern import Pattern
from leanmoe_pruning.methods.weights.schedule import LayerInputs
from leanmoe_pruning.methods.weights.sparsegpt import Curvature, expert_hessians, prune_matrix
from leanmoe_pruning.scores.moments import Moments

Masks = dict[Projection, list[torch.Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What was kept of one layer, bool ``[rows, columns]`` by projection and expert, and why."""

    keep: Masks
    norms: ColumnNorms | None = None
    calls_E: torch.Tensor | None = None
    by_all_tokens: tuple[int, ...] = ()
    by_weight: tuple[int, ...] = field(default=())


def by_norms_(weights: LayerWeights, moments: Moments, gated: bool, pattern: Pattern) -> Outcome:
    """Zero, in place, the weights of lowest ``|W| n_j``: MoE-Pruner where ``gated``, else Wanda."""
    norms = ColumnNorms.of(moments, gated)
    keep: Masks = {projection: [] for projection in PROJECTIONS}
    for projection in PROJECTIONS:
        for expert, norm in enumerate(norms.by_projection[projection]):
            keep[projection].append(_prune_(weights, projection, expert, norm, pattern))
    return Outcome(keep, norms, moments.calls_E, norms.by_all_tokens, norms.by_weight)


def by_magnitude_(weights: LayerWeights, pattern: Pattern) -> Outcome:
    """Zero, in place, the smallest weights of each row or group."""
    keep = {
        projection: [
            _prune_(weights, projection, expert, None, pattern)
            for expert in range(weights.n_experts)
        ]
        for projection in PROJECTIONS
    }
    return Outcome(keep)


def _prune_(
    weights: LayerWeights,
    projection: Projection,
    expert: int,
    norm: torch.Tensor | None,
    pattern: Pattern,
) -> torch.Tensor:
    weight = weights.meant(projection, expert)
    size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    score = size if norm is None else size * norm.to(size.dtype)
    keep = pattern.keep(score, size)
    weights.zero_(projection, expert, ~keep)
    return keep


def by_sparsegpt_(weights: LayerWeights, inputs: LayerInputs, pattern: Pattern) -> Outcome:
    """Prune and correct in place; experts that no token was routed to as Wanda on all tokens."""
    reached = set()
    for expert, input_DD, hidden_FF in expert_hessians(inputs):
        reached.add(expert)
        where = f"expert {expert} of layer {inputs.layer.index}"
        curvature = Curvature.of(input_DD, where)
        for projection in ("gate_proj", "up_proj"):
            view = weights.views[projection][expert]
            view.copy_(prune_matrix(view, curvature, pattern))
        view = weights.views["down_proj"][expert]
        view.copy_(prune_matrix(view, Curvature.of(hidden_FF, where), pattern))
    rest = tuple(sorted(set(range(weights.n_experts)) - reached))
    by_weight = _rest_by_all_tokens_(weights, inputs, rest, pattern) if rest else ()
    keep = {name: [view != 0 for view in views] for name, views in weights.views.items()}
    return Outcome(keep, by_all_tokens=rest, by_weight=by_weight)


def _rest_by_all_tokens_(
    weights: LayerWeights, inputs: LayerInputs, rest: tuple[int, ...], pattern: Pattern
) -> tuple[int, ...]:
    norms = ColumnNorms.of(inputs.moments(), gated=False)
    for projection in PROJECTIONS:
        for expert in rest:
            norm = norms.by_projection[projection][expert]
            _prune_(weights, projection, expert, norm, pattern)
    return norms.by_weight
