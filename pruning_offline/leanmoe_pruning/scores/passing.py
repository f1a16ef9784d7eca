"""The unpruned model run layer by layer, the scores of each MoE layer given as it is passed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from leanmoe.families import MoEShape
from leanmoe.files.resuming import Unfinished
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.activations import (
    PORTION_TOKENS,
    cut,
    entering_file,
    portions,
    read_activations,
    write_activations,
)
from leanmoe_pruning.scores.bundle import layer_file, write_layer
from leanmoe_pruning.scores.layer_scores import Gathering, LayerScores
from leanmoe_pruning.scores.measuring import MOST_OUTPUT_BYTES, measure_chunk
from leanmoe_pruning.scores.sampling import evenly_spaced, gram_sample
from leanmoe_pruning.scores.threads import in_order

Portion = tuple[torch.Tensor, slice]
_MOST_BYTES = 1 << 30  # of portions being worked on


def sampled_tokens(
    stream: DecoderStream, ids: Sequence[torch.Tensor], asked: int | None
) -> torch.Tensor:
    """Which tokens get a Gram matrix, int64; raise where ``asked`` is no such number."""
    tokens = sum(part.numel() for part in ids)
    sample = gram_sample(stream.shape.n_routed_experts, tokens, asked)
    return evenly_spaced(tokens, sample)


def score_layers(
    stream: DecoderStream,
    ids: Sequence[torch.Tensor],
    tick: Tick,
    gram_tokens: int | None = None,
) -> Iterator[LayerScores]:
    """Scores of every MoE layer in order; activations are held in memory."""
    sampled = sampled_tokens(stream, ids, gram_tokens)
    hidden = embed_all(stream, ids)
    for layer in stream.layers():
        passing = _Passing(layer, sampled)
        for _ in passing.through(cut(hidden)):
            pass
        tick()
        if (scores := passing.gathered.whole()) is not None:
            yield scores


def most_at_once(shape: MoEShape) -> int:
    """Portions that fit into what scoring may take beside weights and activations."""
    outputs = min(
        MOST_OUTPUT_BYTES, 4 * shape.n_routed_experts * shape.hidden_size * PORTION_TOKENS
    )
    values = 4 * PORTION_TOKENS * (6 * shape.hidden_size + 3 * shape.expert_ffn_size)
    return max(1, _MOST_BYTES // (outputs + values))


class _Passing:
    """One layer applied to chunks of activations, its scores gathered."""

    def __init__(self, layer: DecoderLayer, sampled: torch.Tensor) -> None:
        self._layer = layer
        self._sampled = sampled
        self.gathered = Gathering()

    def through(self, portions: Iterable[Portion]) -> Iterator[torch.Tensor]:
        """Each chunk after the layer, changed in place."""
        for chunk_NTD, scores in in_order(self._step_, portions, most_at_once(self._layer.shape)):
            if scores is not None:
                self.gathered.take(scores)
            yield chunk_NTD

    def _step_(self, portion: Portion) -> tuple[torch.Tensor, LayerScores | None]:
        chunk_NTD, rows = portion
        if self._layer.experts is None:
            step_(self._layer, [chunk_NTD])
            return chunk_NTD, None
        self._layer.attend_(chunk_NTD)
        own = self._sampled[(self._sampled >= rows.start) & (self._sampled < rows.stop)]
        scores, output_TD = measure_chunk(self._layer, chunk_NTD, sampled=own - rows.start)
        self._layer.add_(chunk_NTD, output_TD)
        return chunk_NTD, scores


def score_into(
    unfinished: Unfinished,
    stream: DecoderStream,
    ids: list[torch.Tensor],
    sampled: torch.Tensor,
    tick: Tick,
    goes_back: bool = False,
) -> None:
    """Leave the file of every MoE layer in ``unfinished.output``; go on where a run stopped.

    A layer is committed with the activations that enter the next one, so memory holds one
    layer's weights and a few windows, whatever the amount of data. Where the run ``goes_back``
    through the layers afterwards (``effects``), what entered each of them stays.
    """
    held, size = portions(ids), stream.shape.hidden_size
    for _ in range(min(unfinished.step, stream.n_layers)):
        tick()
    entered: dict[str, str] = {}
    if unfinished.step == 0:
        embedded = (stream.embed(ids_NT) for ids_NT, _ in cut(ids))
        first = unfinished.folder / entering_file(0)
        entered[first.name] = write_activations(first, held, size, embedded)
        stream.forget_embedding()
    for index in range(unfinished.step, stream.n_layers):
        files = {**unfinished.files, **entered} if goes_back else _of_output(unfinished)
        before = read_activations(unfinished.folder / entering_file(index), held)
        passing = _Passing(stream.layer(index), sampled)
        after = passing.through(before)
        if goes_back or index + 1 < stream.n_layers:
            path = unfinished.folder / entering_file(index + 1)
            files[path.name] = write_activations(path, held, size, after)
        else:
            for _ in after:
                pass
        scores = passing.gathered.whole()
        # Before the next layer is read: two in memory are more than is promised.
        del passing, after
        if scores is not None:
            digest = write_layer(unfinished.output, scores)
            files[f"output/{layer_file(index)}"] = digest
        unfinished.commit(index + 1, files)
        tick()


def _of_output(unfinished: Unfinished) -> dict[str, str]:
    """The committed files of the bundle."""
    return {f"output/{name}": digest for name, digest in unfinished.finished().items()}
