"""The unpruned model run layer by layer, the scores of each MoE layer given as it is passed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from leanmoe_pruning.forward.passes import Hidden, chunks, embed_all, step_
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.measuring import measure_chunk
from leanmoe_pruning.scores.sampling import evenly_spaced, gram_tokens
from leanmoe_pruning.scores.scoring import LayerScores, joined


def score_layers(
    stream: DecoderStream, ids: Sequence[torch.Tensor], tick: Tick, wished: int | None = None
) -> Iterator[LayerScores]:
    """Scores of every MoE layer in order, from the unpruned model's activations.

    ``wished`` tokens get a Gram matrix, by default as many as ``sampling`` says.
    """
    tokens = sum(part.numel() for part in ids)
    sampled = evenly_spaced(tokens, gram_tokens(stream.shape.n_routed_experts, tokens, wished))
    hidden = embed_all(stream, ids)
    for layer in stream.layers():
        if layer.experts is None:
            step_(layer, hidden)
            tick()
            continue
        scores = score_layer_(layer, hidden, sampled)
        tick()
        yield scores


def score_layer_(layer: DecoderLayer, hidden: Hidden, sampled: torch.Tensor) -> LayerScores:
    """Carry the activations through one layer, in place; its scores."""
    parts = []
    for chunk_NTD, rows in chunks(hidden):
        layer.attend_(chunk_NTD)
        own = sampled[(sampled >= rows.start) & (sampled < rows.stop)] - rows.start
        scores, output_TD = measure_chunk(layer, chunk_NTD, sampled=own)
        layer.add_(chunk_NTD, output_TD)
        parts.append(scores)
    return joined(parts)
