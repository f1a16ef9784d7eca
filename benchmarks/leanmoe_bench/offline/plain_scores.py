"""What a score bundle holds of one MoE layer, computed as it is defined, one thing after the other.

Every expert's output on every token, in float32, then each statistic for itself, sums in float64.
The fast way (``leanmoe_pruning.scores.measuring``) is held against it: in tests for what it gives,
here for what it saves. T tokens, D model, F expert hidden, E experts, K top-k.
"""

from __future__ import annotations

import torch

from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer
from leanmoe_pruning.scores.gram import packed_size
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.moments import Moments


def plain_scores(layer: DecoderLayer, chunk_NTD: torch.Tensor) -> tuple[LayerScores, torch.Tensor]:
    """Scores of a few windows, all tokens with a Gram matrix, and the block's output ``[T, D]``."""
    assert layer.experts is not None, f"layer {layer.index} is dense"
    experts, x_TD = layer.experts, layer.block_input(chunk_NTD)
    logits_TE = layer.router_logits(x_TD)
    routing = layer.route(logits_TE)
    outputs_ETD = experts.every_output(x_TD)
    output_TD, norm_TK = _routed(outputs_ETD, routing)
    used_NE = torch.zeros(len(chunk_NTD), len(experts), dtype=torch.int64)
    used_NE.scatter_(1, routing.ids_TK.reshape(len(chunk_NTD), -1), 1)
    scores = LayerScores(
        layer.index,
        layer.rule,
        logits_TE,
        _gram(outputs_ETD, output_TD),
        norm_TK,
        _largest(outputs_ETD, routing),
        _moments(experts, x_TD, routing, used_NE.sum(0)),
        _largest(outputs_ETD.abs(), routing),
    )
    shared_TD = layer.shared(x_TD)
    return scores, output_TD if shared_TD is None else output_TD + shared_TD


def _routed(outputs_ETD: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts' part of the block's output, and the norm of each of its terms."""
    output_TD = torch.zeros_like(outputs_ETD[0])
    norm_TK = torch.zeros(routing.ids_TK.shape)
    for expert in range(len(outputs_ETD)):
        token, slot = (routing.ids_TK == expert).nonzero(as_tuple=True)
        own_ND = outputs_ETD[expert, token]
        output_TD[token] += own_ND * routing.applied()[token, slot, None]
        norm_TK[token, slot] = own_ND.norm(dim=-1)
    return output_TD, norm_TK


def _gram(outputs_ETD: torch.Tensor, output_TD: torch.Tensor) -> torch.Tensor:
    vectors_ETD = torch.cat([outputs_ETD - output_TD, output_TD[None]]).double()
    gram_TP = torch.empty(len(output_TD), packed_size(len(outputs_ETD)), dtype=torch.float64)
    place = 0
    for one in range(len(vectors_ETD)):
        for other in range(one, len(vectors_ETD)):
            gram_TP[:, place] = (vectors_ETD[one] * vectors_ETD[other]).sum(-1)
            place += 1
    return gram_TP


def _largest(outputs_ETD: torch.Tensor, routing: Routing) -> torch.Tensor:
    largest_E = torch.zeros(len(outputs_ETD))
    for expert in range(len(outputs_ETD)):
        own_ND = outputs_ETD[expert, (routing.ids_TK == expert).any(-1)]
        if len(own_ND):
            largest_E[expert] = own_ND.max().clamp_min(0.0)
    return largest_E


def _moments(
    experts: Experts, x_TD: torch.Tensor, routing: Routing, calls_E: torch.Tensor
) -> Moments:
    wide, narrow = experts.gate_proj[0].shape
    found = Moments.zeros(len(experts), narrow, wide)
    found.calls_E.add_(calls_E)
    squares_TD = x_TD.double().square()
    found.all_input_D.add_(squares_TD.sum(0))
    for expert in range(len(experts)):
        token, slot = (routing.ids_TK == expert).nonzero(as_tuple=True)
        gates_N1 = routing.applied()[token, slot, None].double().square()
        hidden_TF = experts.hidden(expert, x_TD).double().square()
        found.all_hidden_EF[expert] = hidden_TF.sum(0)
        found.input_ED[expert] = squares_TD[token].sum(0)
        found.gated_input_ED[expert] = (squares_TD[token] * gates_N1).sum(0)
        found.hidden_EF[expert] = hidden_TF[token].sum(0)
        found.gated_hidden_EF[expert] = (hidden_TF[token] * gates_N1).sum(0)
    return found
