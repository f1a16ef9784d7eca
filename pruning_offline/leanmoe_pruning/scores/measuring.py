"""One MoE block run on a few windows, everything a score bundle holds taken down on the way.

Every expert runs on the tokens that get a Gram matrix, and on those routed to it.
T tokens, S sampled ones, N routed to one expert, R that it runs on, D model, F expert hidden,
E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.passes import check_activations
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer
from leanmoe_pruning.scores.gram import centred_gram
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.moments import Moments, Shares

MOST_OUTPUT_BYTES = 1 << 27  # of the outputs held at a time


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
    moments.calls_E.add_(_calls(routing, len(chunk_NTD), n_experts))
    largest_E, peak_E = torch.zeros(n_experts), torch.zeros(n_experts)
    output_TD, norms, grams = torch.empty_like(x_TD), [], []
    for start in range(0, len(x_TD), step := _tokens_at_once(len(x_TD), len(rows), experts)):
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


def _tokens_at_once(tokens: int, sampled: int, experts: Experts) -> int:
    """So many that what all experts give for the sampled ones among them fits."""
    most = MOST_OUTPUT_BYTES // (len(experts) * len(experts.down_proj[0]) * 4)
    return max(1, most if sampled == 0 else most * tokens // sampled)


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
    weights_TK, shares = routing.applied(), Shares.of(routing, len(experts), sampled)
    moments.add_inputs_(x_TD, shares)
    given_TD = x_TD.to(experts.dtype)
    for expert in range(len(experts)):
        token, slot = (routing.ids_TK == expert).nonzero(as_tuple=True)
        rows = _Rows.of(token, sampled, len(x_TD))
        given_RD = rows.of_tokens(given_TD)
        if expert in experts.stand_ins:  # which has no hidden channels to be told of
            output_RD = experts.output(expert, given_RD)
        else:
            hidden_RF = experts.hidden(expert, given_RD)
            moments.add_hidden_(expert, hidden_RF, rows.needed, shares)
            output_RD = experts.project(expert, hidden_RF)
        found.sampled_ESD[expert] = rows.at(sampled, output_RD)
        if len(token) == 0:
            continue
        own_ND = output_RD[rows.place_T[token]]
        found.output_TD[token] += own_ND * weights_TK[token, slot, None]
        found.norm_TK[token, slot] = own_ND.norm(dim=-1)
        largest_E[expert] = torch.maximum(largest_E[expert], own_ND.max())
        peak_E[expert] = torch.maximum(peak_E[expert], own_ND.abs().max())
    return found


@dataclass(frozen=True)
class _Rows:
    """The tokens that one expert runs on: ``needed``, ascending; ``place_T`` says where each is."""

    needed: torch.Tensor
    place_T: torch.Tensor

    @classmethod
    def of(cls, routed: torch.Tensor, sampled: torch.Tensor, tokens: int) -> _Rows:
        if len(sampled) == tokens:
            return cls(sampled, sampled)
        needed_T = torch.zeros(tokens, dtype=torch.bool)
        needed_T[routed] = True
        needed_T[sampled] = True
        return cls(needed_T.nonzero().flatten(), needed_T.cumsum(0) - 1)

    def of_tokens(self, values_TD: torch.Tensor) -> torch.Tensor:
        """The rows of these tokens; no copy where they are all."""
        return values_TD if len(self.needed) == len(values_TD) else values_TD[self.needed]

    def at(self, sampled: torch.Tensor, computed_RD: torch.Tensor) -> torch.Tensor:
        """The sampled tokens' rows of what was computed; no copy where they are all."""
        return (
            computed_RD if len(sampled) == len(computed_RD) else computed_RD[self.place_T[sampled]]
        )


def _check_finite(scores: LayerScores, output_TD: torch.Tensor) -> None:
    measured = (scores.router_logits_TE, scores.output_gram_TP, output_TD)
    moments = scores.moments.tensors().values()
    check_activations(f"layer {scores.layer}", (*measured, *moments))
