"""The pass over calibration data that every selection method decides from.

Per MoE layer it leaves the router logits of every token and the packed Gram matrix
of the expert outputs (see ``gram``): token counts, gate mass, w_j/w_max ratios and
the loss of every subset follow from these two without the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from leanmoe.errors import CheckpointError
from leanmoe_pruning.checkpoints.shards import is_finite
from leanmoe_pruning.forward.passes import chunks, embed_all, step_
from leanmoe_pruning.forward.routing import RouterRule, Routing, route
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.gram import centred_gram


@dataclass(frozen=True)
class LayerScores:
    """Sufficient statistics of one MoE layer: logits ``[T, E]``, packed Gram ``[T, P]``."""

    layer: int
    rule: RouterRule
    router_logits_TE: torch.Tensor
    output_gram_TP: torch.Tensor

    @property
    def n_experts(self) -> int:
        return self.router_logits_TE.shape[1]

    def routing(self, kept: Sequence[int] | None = None) -> Routing:
        """Routing of every token among the ``kept`` experts, all where ``None``."""
        return route(self.router_logits_TE, self.rule, kept)

    def token_counts(self) -> torch.Tensor:
        """Tokens routed to each expert, int64 ``[E]``."""
        ids_TK = self.routing().ids_TK
        return torch.bincount(ids_TK.flatten(), minlength=self.n_experts)

    def gate_mass(self) -> torch.Tensor:
        """Sum of applied router weights per expert, float64 ``[E]``."""
        routing = self.routing()
        weights = routing.applied().double().flatten()
        mass = torch.zeros(self.n_experts, dtype=torch.float64)
        return mass.index_add_(0, routing.ids_TK.flatten(), weights)


def gate_ratios(routing: Routing) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """w_j / w_max of every routed assignment but the first, flat; NAEE's w1/w0 for K = 2."""
    return np.asarray(routing.ratios[:, 1:].flatten().numpy(), dtype=np.float32)


def median_beta(routing: Routing) -> float:
    """NAEE's beta: the median ratio, the mean of the middle two for an even count."""
    ratios = gate_ratios(routing).astype(np.float64)
    return float(np.median(ratios)) if len(ratios) else 0.0


def measure_chunk(
    layer: DecoderLayer,
    chunk_NTD: torch.Tensor,
    target_TD: torch.Tensor | None = None,
) -> tuple[LayerScores, torch.Tensor]:
    """Run every expert on every token of a few windows; return scores and unpruned output [T, D].

    The Gram matrices are centred on ``target_TD``, by default that output itself, both without
    what the shared expert gives: it is the same whatever is pruned.
    """
    assert layer.experts is not None, f"layer {layer.index} is dense"
    x_TD = layer.block_input(chunk_NTD)
    shared_TD = layer.shared(x_TD)
    logits_TE = layer.router_logits(x_TD)
    every_ETD = layer.experts.every_output(x_TD)
    output_TD = _mix(every_ETD, layer.route(logits_TE))
    centre_TD = output_TD
    if target_TD is not None:
        centre_TD = target_TD if shared_TD is None else target_TD - shared_TD
    gram_TP = centred_gram(every_ETD, centre_TD)
    if not (is_finite(logits_TE) and is_finite(gram_TP)):
        raise CheckpointError(
            f"the activations of layer {layer.index} are not finite, so nothing can be decided "
            "from them: the weights overflow; try --compute float32 or fetch the model again"
        )
    scores = LayerScores(layer.index, layer.rule, logits_TE, gram_TP)
    return scores, output_TD if shared_TD is None else output_TD + shared_TD


def _mix(every_ETD: torch.Tensor, routing: Routing) -> torch.Tensor:
    tokens = torch.arange(every_ETD.shape[1])[:, None]
    chosen_TKD = every_ETD[routing.ids_TK, tokens]
    return (routing.applied()[:, :, None] * chosen_TKD).sum(1)


def joined(parts: Sequence[LayerScores]) -> LayerScores:
    """Scores of consecutive tokens of one layer as one."""
    return LayerScores(
        parts[0].layer,
        parts[0].rule,
        torch.cat([part.router_logits_TE for part in parts]),
        torch.cat([part.output_gram_TP for part in parts]),
    )


def score_layers(
    stream: DecoderStream, ids: Sequence[torch.Tensor], tick: Tick
) -> Iterator[LayerScores]:
    """Scores of every MoE layer in order, from the unpruned model's activations."""
    hidden = embed_all(stream, ids)
    for layer in stream.layers():
        if layer.experts is None:
            step_(layer, hidden)
            tick()
            continue
        parts = []
        for chunk_NTD, _ in chunks(hidden):
            layer.attend_(chunk_NTD)
            scores, output_TD = measure_chunk(layer, chunk_NTD)
            layer.add_(chunk_NTD, output_TD)
            parts.append(scores)
        tick()
        yield joined(parts)
