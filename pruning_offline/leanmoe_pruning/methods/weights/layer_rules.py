"""The four ways to prune one layer's expert weights: by which score, with which correction.

With a pattern, columns may be grouped in another order. The hidden channels of an expert take
their new places in the weights; the input columns of its gate and up projection stay where they
are, and the order that they are grouped in is told. R rows, C columns, F expert hidden, D model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights
from leanmoe_pruning.methods.weights.norms import ColumnNorms
from leanmoe_pruning.methods.weights.pattern import OfEvery, Pattern, keep_in_order
from leanmoe_pruning.methods.weights.schedule import LayerInputs
from leanmoe_pruning.methods.weights.sparsegpt import Curvature, expert_hessians, prune_matrix
from leanmoe_pruning.scores.moments import Moments

Masks = dict[Projection, list[torch.Tensor]]
INPUTS: tuple[Projection, ...] = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Grouping:
    """A pattern, and which columns may be put in another order for it."""

    pattern: Pattern
    hidden: bool = False
    inputs: bool = False
    seed: int = 0

    def hidden_order(self, score_DF: torch.Tensor) -> torch.Tensor | None:
        """The order of hidden channels by ``down_proj``'s scores, ``None`` where they stay."""
        return self._order(score_DF) if self.hidden else None

    def input_order(self, scores: list[torch.Tensor]) -> torch.Tensor | None:
        """The order of input columns by the scores of gate and up projection, each ``[F, D]``."""
        return self._order(torch.cat(scores)) if self.inputs else None

    def _order(self, score_RC: torch.Tensor) -> torch.Tensor:
        # Here alone scipy is needed, which the weight methods otherwise do without.
        from leanmoe_pruning.methods.weights.ordering import balanced_order

        assert isinstance(self.pattern, OfEvery), "only groups have an order"
        return balanced_order(score_RC, self.pattern, self.seed)


@dataclass(frozen=True)
class Outcome:
    """What was kept of one layer, bool ``[rows, columns]`` by projection and expert, and why.

    ``input_orders`` has int64 ``[D]`` per expert where input columns were grouped in an order.
    """

    keep: Masks
    norms: ColumnNorms | None = None
    calls_E: torch.Tensor | None = None
    by_all_tokens: tuple[int, ...] = ()
    by_weight: tuple[int, ...] = field(default=())
    input_orders: tuple[torch.Tensor, ...] = ()


def by_norms_(weights: LayerWeights, moments: Moments, gated: bool, rule: Grouping) -> Outcome:
    """Zero, in place, the weights of lowest ``|W| n_j``: MoE-Pruner where ``gated``, else Wanda."""
    norms = ColumnNorms.of(moments, gated)
    keep, orders = _prune_experts_(weights, norms, rule)
    return Outcome(
        keep, norms, moments.calls_E, norms.by_all_tokens, norms.by_weight, input_orders=orders
    )


def by_magnitude_(weights: LayerWeights, rule: Grouping) -> Outcome:
    """Zero, in place, the smallest weights of each row or group."""
    keep, orders = _prune_experts_(weights, None, rule)
    return Outcome(keep, input_orders=orders)


def _prune_experts_(
    weights: LayerWeights, norms: ColumnNorms | None, rule: Grouping
) -> tuple[Masks, tuple[torch.Tensor, ...]]:
    keep: Masks = {projection: [] for projection in PROJECTIONS}
    orders = []
    for expert in range(weights.n_experts):
        masks, order = _prune_expert_(weights, norms, rule, expert)
        for projection, mask in masks.items():
            keep[projection].append(mask)
        orders += [] if order is None else [order]
    return keep, tuple(orders)


def _prune_expert_(
    weights: LayerWeights, norms: ColumnNorms | None, rule: Grouping, expert: int
) -> tuple[dict[Projection, torch.Tensor], torch.Tensor | None]:
    """Masks by projection, and the order of the input columns, where they have one."""
    hidden = rule.hidden_order(_score(weights, norms, "down_proj", expert)[0])
    if hidden is not None:
        _reorder_hidden_(weights, norms, expert, hidden)
    found = {name: _score(weights, norms, name, expert) for name in PROJECTIONS}
    order = rule.input_order([found[name][0] for name in INPUTS])
    masks = {}
    for name, (score, size) in found.items():
        masks[name] = keep_in_order(rule.pattern, score, size, order if name in INPUTS else None)
        weights.zero_(name, expert, ~masks[name])
    return masks, order


def _reorder_hidden_(
    weights: LayerWeights, norms: ColumnNorms | None, expert: int, order_F: torch.Tensor
) -> None:
    weights.reorder_hidden_(expert, order_F)
    if norms is not None:
        norm_F = norms.by_projection["down_proj"][expert]
        norm_F.copy_(norm_F[order_F])


def _score(
    weights: LayerWeights, norms: ColumnNorms | None, projection: Projection, expert: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and sizes of a matrix's weights."""
    weight = weights.meant(projection, expert)
    size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    if norms is None:
        return size, size
    return size * norms.by_projection[projection][expert].to(size.dtype), size


def by_sparsegpt_(weights: LayerWeights, inputs: LayerInputs, rule: Grouping) -> Outcome:
    """Prune and correct in place; experts that no token was routed to as Wanda on all tokens."""
    orders: dict[int, torch.Tensor | None] = {}
    for expert, input_DD, hidden_FF in expert_hessians(inputs):
        where = f"expert {expert} of layer {inputs.layer.index}"
        _correct_down_(weights, expert, hidden_FF, rule, where)
        orders[expert] = _correct_inputs_(weights, expert, input_DD, rule, where)
    rest = tuple(sorted(set(range(weights.n_experts)) - set(orders)))
    by_weight: tuple[int, ...] = ()
    if rest:
        norms = ColumnNorms.of(inputs.moments(), gated=False)
        orders |= {expert: _prune_expert_(weights, norms, rule, expert)[1] for expert in rest}
        by_weight = norms.by_weight
    keep = {name: [view != 0 for view in views] for name, views in weights.views.items()}
    told = tuple(order for _, order in sorted(orders.items()) if order is not None)
    return Outcome(keep, by_all_tokens=rest, by_weight=by_weight, input_orders=told)


def _correct_down_(
    weights: LayerWeights, expert: int, hidden_FF: torch.Tensor, rule: Grouping, where: str
) -> None:
    view_DF = weights.views["down_proj"][expert]
    order = rule.hidden_order(_by_moments(view_DF, hidden_FF))
    if order is not None:
        weights.reorder_hidden_(expert, order)
        hidden_FF = hidden_FF[order][:, order]
    view_DF.copy_(prune_matrix(view_DF, Curvature.of(hidden_FF, where), rule.pattern))


def _correct_inputs_(
    weights: LayerWeights, expert: int, input_DD: torch.Tensor, rule: Grouping, where: str
) -> torch.Tensor | None:
    """Gate and up projection, their columns worked through in the order that is returned."""
    views = [weights.views[name][expert] for name in INPUTS]
    order = rule.input_order([_by_moments(view_FD, input_DD) for view_FD in views])
    columns = torch.arange(len(input_DD)) if order is None else order
    curvature = Curvature.of(input_DD[columns][:, columns], where)
    for view_FD in views:
        view_FD[:, columns] = prune_matrix(view_FD[:, columns], curvature, rule.pattern).to(
            view_FD.dtype
        )
    return order


def _by_moments(view_RC: torch.Tensor, moments_CC: torch.Tensor) -> torch.Tensor:
    return view_RC.float().abs() * moments_CC.diagonal().sqrt()
