"""NAEE: keep the subset of experts that changes the layer's output least (arXiv 2402.14800).

The loss of a subset is the sum over batches of the Frobenius norm, in float64, of
(block output with the pruned experts' logits at -inf) - (unpruned output), so it
depends on the batch size. Equal losses go to the first in lexicographic order of
the pruned experts. Computed from per-token Gram matrices (see ``gram``), of which layers of
many experts have a sample: the loss is then of these tokens. Few subsets are all tried; where
they are too many, ``greedy`` searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from leanmoe_pruning.forward.passes import Hidden, chunks, embed_all, run_block, step_
from leanmoe_pruning.forward.routing import route
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.methods.naee.greedy import Elimination, refined
from leanmoe_pruning.methods.naee.removal import Removals
from leanmoe_pruning.methods.selection import LayerChoice, complement, pruned_subsets
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.gram import squared_distance
from leanmoe_pruning.scores.layer_scores import Gathering, LayerScores
from leanmoe_pruning.scores.measuring import measure_chunk
from leanmoe_pruning.scores.passing import sampled_tokens

MAX_ROWS = 1 << 18  # (subset, token) pairs looked at in one go
SearchKind = Literal["enumerate", "greedy", "beam"]


@dataclass(frozen=True)
class Search:
    """How the subsets of a layer are gone through."""

    kind: SearchKind = "enumerate"
    # Sets that elimination carries along; 1 is greedy.
    width: int = 1


def subset_losses(
    scores: LayerScores,
    pruned_S: Sequence[Sequence[int]],
    batch_of_T: torch.Tensor,
) -> torch.Tensor:
    """Loss of each set of pruned experts, float64; ``batch_of_T`` is each token's batch."""
    return batch_losses(scores, pruned_S, batch_of_T).sum(1)


def batch_losses(
    scores: LayerScores,
    pruned_S: Sequence[Sequence[int]],
    batch_of_T: torch.Tensor,
) -> torch.Tensor:
    """What each batch adds to the loss of each set, float64 ``[S, B]``.

    ``batch_of_T`` is of all tokens that were scored; those without a Gram matrix are left out here.
    """
    batch_of_T = batch_of_T[scores.gram_tokens]
    at_once = max(1, MAX_ROWS // len(batch_of_T))
    parts = [
        _losses(scores, pruned_S[start : start + at_once], batch_of_T)
        for start in range(0, len(pruned_S), at_once)
    ]
    return torch.cat(parts)


def _losses(
    scores: LayerScores,
    pruned_S: Sequence[Sequence[int]],
    batch_of_T: torch.Tensor,
) -> torch.Tensor:
    absent_SE = torch.zeros(len(pruned_S), scores.n_experts, dtype=torch.bool)
    for row, experts in enumerate(pruned_S):
        absent_SE[row, list(experts)] = True
    logits_STE = scores.router_logits_TE[scores.gram_tokens].masked_fill(
        absent_SE[:, None], float("-inf")
    )
    routing = route(logits_STE.flatten(0, 1), scores.rule)
    size = (len(pruned_S), len(batch_of_T), scores.rule.top_k)
    squared_ST = squared_distance(
        scores.output_gram_TP,
        routing.applied().view(size),
        routing.ids_TK.view(size),
        scores.n_experts,
    )
    n_batches = int(batch_of_T[-1]) + 1
    sums_SB = torch.zeros(len(pruned_S), n_batches, dtype=torch.float64)
    sums_SB.scatter_add_(1, batch_of_T.expand(len(pruned_S), -1), squared_ST)
    return sums_SB.sqrt()


def output_norms(scores: LayerScores, batch_of_T: torch.Tensor) -> torch.Tensor:
    """Norm of the whole block's routed output in each batch, float64 ``[B]``."""
    batch_of_T = batch_of_T[scores.gram_tokens]
    # The last of the packed products is the output's with itself.
    sums_B = torch.zeros(int(batch_of_T[-1]) + 1, dtype=torch.float64)
    return sums_B.index_add_(0, batch_of_T, scores.output_gram_TP[:, -1]).sqrt()


def chooser_of(
    scores: LayerScores, batch_of_T: torch.Tensor, search: Search
) -> Callable[[int], LayerChoice]:
    """Looks at one layer and gives the best subset found of any number of kept experts."""
    if search.kind == "enumerate":
        return lambda keep: choose(scores, keep, batch_of_T)
    removals = Removals(scores, batch_of_T)
    elimination = Elimination(removals, scores.rule.n_groups, search.width)

    def chooser(keep: int) -> LayerChoice:
        kept, loss = refined(removals, elimination.best(keep), scores.rule.n_groups)
        return LayerChoice(scores.layer, kept, loss=loss)

    return chooser


def choose(scores: LayerScores, keep: int, batch_of_T: torch.Tensor) -> LayerChoice:
    """The best subset of one layer and the losses of all."""
    subsets = pruned_subsets(scores.n_experts, keep, scores.rule.n_groups)
    losses = subset_losses(scores, subsets, batch_of_T)
    values = losses.tolist()
    best = min(range(len(values)), key=values.__getitem__)
    kept = complement(subsets[best], scores.n_experts)
    return LayerChoice(scores.layer, kept, losses, values[best])


def layerwise(
    layers: Iterable[LayerScores], keep: int, batch_of_T: torch.Tensor, search: Search
) -> Iterator[LayerChoice]:
    """Choose each layer alone, on activations of the unpruned model."""
    for scores in layers:
        yield chooser_of(scores, batch_of_T, search)(keep)


def progressive(
    stream: DecoderStream,
    ids: Sequence[torch.Tensor],
    keep: int,
    batch_of_T: torch.Tensor,
    search: Search,
    tick: Tick,
    look: Callable[[LayerScores], None],
) -> Iterator[LayerChoice]:
    """Choose each layer on inputs re-collected after the earlier ones were pruned.

    The output to match is always the unpruned model's, so both are carried along. ``look`` is
    shown the scores that each layer was chosen from.
    """
    sampled = sampled_tokens(stream, ids, None)
    full = embed_all(stream, ids)
    pruned = embed_all(stream, ids)
    for layer in stream.layers():
        if layer.experts is None:
            step_(layer, full)
            step_(layer, pruned)
            tick()
            continue
        scores = _advance_both(layer, full, pruned, sampled)
        look(scores)
        choice = chooser_of(scores, batch_of_T, search)(keep)
        for chunk_NTD, _ in chunks(pruned):
            output_TD, _ = run_block(layer, chunk_NTD, choice.kept)
            layer.add_(chunk_NTD, output_TD)
        tick()
        yield choice


def _advance_both(
    layer: DecoderLayer, full: Hidden, pruned: Hidden, sampled: torch.Tensor
) -> LayerScores:
    """The full model passes the layer, the pruned one stops at its MoE block: its scores."""
    gathering = Gathering()
    for (full_NTD, rows), (pruned_NTD, _) in zip(chunks(full), chunks(pruned), strict=True):
        layer.attend_(full_NTD)
        target_TD, _ = run_block(layer, full_NTD)
        layer.add_(full_NTD, target_TD)
        layer.attend_(pruned_NTD)
        own = sampled[(sampled >= rows.start) & (sampled < rows.stop)] - rows.start
        gathering.take(measure_chunk(layer, pruned_NTD, target_TD, own)[0])
    scores = gathering.whole()
    assert scores is not None  # there is data
    return scores
