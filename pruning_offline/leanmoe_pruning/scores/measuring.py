"""One MoE block run on a few windows, everything a score bundle holds taken down on the way.

Every expert runs on the tokens that get a Gram matrix, and on those routed to it.
T tokens, S sampled tokens, N routed to one expert, D model, F expert hidden, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from leanmoe.families import MoEShape
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.passes import check_activations
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer
from leanmoe_pruning.scores.gram import centred_gram
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.moments import Moments

_MOST_BYTES = 1 << 28  # of the outputs, or of one expert's squares, held at a time


@dataclass
class _Slice:
    """What the experts leave behind on consecutive tokens."""

    output_TD: torch.Tensor
    norm_TK: torch.Tensor
    sampled_ESD: torch.Tensor


def measure_chunk(
    layer: DecoderLayer,
    chunk_NTD: torch.Tensor,
    target_TD: torch.Tensor | None = None,
    sampled: torch.Tensor | None = None,
) -> tuple[LayerScores, torch.Tensor]:
    """Scores of a few windows and the unpruned block's output ``[T, D]``.

    ``sampled`` are the rows that get a Gram matrix, ascending, all where ``None``. The Gram
    matrices are centred on ``target_TD``, by default that output itself, both without what
    the shared expert gives: it is the same whatever is pruned.
    """
    assert layer.experts is not None, f"layer {layer.index} is dense"
    x_TD = layer.block_input(chunk_NTD)
    shared_TD = layer.shared(x_TD)
    if target_TD is not None and shared_TD is not None:
        target_TD = target_TD - shared_TD
    logits_TE = layer.router_logits(x_TD)
    routing = layer.route(logits_TE)
    rows = torch.arange(len(x_TD)) if sampled is None else sampled
    experts, n_experts = layer.experts, len(layer.experts)
    moments = Moments.zeros(n_experts, x_TD.shape[1], layer.shape.expert_ffn_size)
    moments.add_inputs_(x_TD)
    moments.calls_E.add_(_calls(routing, len(chunk_NTD), n_experts))
    largest_E, peak_E = torch.zeros(n_experts), torch.zeros(n_experts)
    output_TD, norms, grams = torch.empty_like(x_TD), [], []
    for start in range(0, len(x_TD), step := _tokens_at_once(layer.shape)):
        part = slice(start, start + step)
        own = rows[(rows >= start) & (rows < start + step)] - start
        found = _run(experts, x_TD[part], _rows(routing, part), own, moments, largest_E, peak_E)
        output_TD[part] = found.output_TD
        norms.append(found.norm_TK)
        target = found.output_TD if target_TD is None else target_TD[part]
        grams.append(centred_gram(found.sampled_ESD, target[own]))
    scores = LayerScores(
        layer.index,
        layer.rule,
        logits_TE,
        torch.cat(grams),
        torch.cat(norms),
        largest_E,
        moments,
        peak_E,
    )
    _check_finite(scores, output_TD)
    return scores, output_TD if shared_TD is None else output_TD + shared_TD


def _tokens_at_once(shape: MoEShape) -> int:
    outputs = shape.n_routed_experts * shape.hidden_size * 4
    squares = max(shape.expert_ffn_size, shape.hidden_size) * 8
    return max(1, _MOST_BYTES // max(outputs, squares))


def _rows(routing: Routing, part: slice) -> Routing:
    return replace(routing, weights_TK=routing.weights_TK[part], ids_TK=routing.ids_TK[part])


def _calls(routing: Routing, windows: int, n_experts: int) -> torch.Tensor:
    used_NE = torch.zeros(windows, n_experts, dtype=torch.int64)
    used_NE.scatter_(1, routing.ids_TK.reshape(windows, -1), 1)
    return used_NE.sum(0)


def _run(
    experts: Experts,
    x_TD: torch.Tensor,
    routing: Routing,
    sampled: torch.Tensor,
    moments: Moments,
    largest_E: torch.Tensor,
    peak_E: torch.Tensor,
) -> _Slice:
    found = _Slice(
        torch.zeros_like(x_TD),
        torch.zeros(routing.ids_TK.shape),
        torch.empty(len(experts), len(sampled), x_TD.shape[1]),
    )
    weights_TK = routing.applied()
    for expert in range(len(experts)):
        token, slot = (routing.ids_TK == expert).nonzero(as_tuple=True)
        needed_T = torch.zeros(len(x_TD), dtype=torch.bool)
        needed_T[token] = True
        needed_T[sampled] = True
        # Where among the computed rows a token is.
        place_T = needed_T.cumsum(0) - 1
        hidden_RF = experts.hidden(expert, x_TD[needed_T])
        output_RD = experts.project(expert, hidden_RF)
        found.sampled_ESD[expert] = output_RD[place_T[sampled]]
        moments.add_hidden_(expert, hidden_RF[place_T[sampled]])
        if len(token) == 0:
            continue
        own_ND, gates_N = output_RD[place_T[token]], weights_TK[token, slot]
        found.output_TD[token] += own_ND * gates_N[:, None]
        found.norm_TK[token, slot] = own_ND.norm(dim=-1)
        largest_E[expert] = torch.maximum(largest_E[expert], own_ND.max())
        peak_E[expert] = torch.maximum(peak_E[expert], own_ND.abs().max())
        moments.add_routed_(expert, x_TD[token], hidden_RF[place_T[token]], gates_N)
    return found


def _check_finite(scores: LayerScores, output_TD: torch.Tensor) -> None:
    measured = (scores.router_logits_TE, scores.output_gram_TP, output_TD)
    moments = scores.moments.tensors().values()
    check_activations(f"layer {scores.layer}", (*measured, *moments))
