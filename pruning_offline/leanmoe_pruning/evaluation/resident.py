"""A model to be evaluated whole or changed, its layers in memory or read anew for each pass.

N rows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from leanmoe.checkpoint import read_object
from leanmoe.errors import CheckpointError
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.forward.passes import step_
from leanmoe_pruning.forward.placing import Placing
from leanmoe_pruning.forward.skipping import EXACT, Skipping
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick, no_tick

# Token ids ``[N, T]`` and, unless they stand in order, their places.
Batch = tuple[torch.Tensor, Placing | None]


@dataclass(frozen=True)
class _Streamed:
    """The layers of a stream, read again by everyone who goes through them."""

    stream: DecoderStream

    def __iter__(self) -> Iterator[DecoderLayer]:
        return self.stream.layers()


@dataclass(frozen=True)
class ResidentModel:
    """Layers of ``stream``; ``kept`` masks experts by layer, ``skipping`` says how they skip."""

    stream: DecoderStream
    layers: Iterable[DecoderLayer]
    tokenizer: ModelTokenizer
    kept: Mapping[int, Sequence[int]] = field(default_factory=dict)
    skipping: Skipping = EXACT

    @classmethod
    def load(cls, stream: DecoderStream, tick: Tick = no_tick) -> Self:
        """Every layer in memory: for many passes."""
        layers = []
        for layer in stream.layers():
            layers.append(layer)
            tick()
        return cls(stream, tuple(layers), ModelTokenizer(stream.checkpoint.path))

    @classmethod
    def streamed(cls, stream: DecoderStream) -> Self:
        """One layer in memory at a time: for few passes over a model of any size."""
        return cls(stream, _Streamed(stream), ModelTokenizer(stream.checkpoint.path))

    def changed(
        self,
        layers: Mapping[int, DecoderLayer] | None = None,
        kept: Mapping[int, Sequence[int]] | None = None,
        skipping: Skipping | None = None,
    ) -> Self:
        """The same model with some layers replaced, masked or skipping; nothing is copied.

        ``layers`` are ``dataclasses.replace`` of this model's own, with other experts, transfer or
        shape; what is not given stays as it is here.
        """
        if layers:
            self = replace(self, layers=tuple(layers.get(one.index, one) for one in self.layers))
        return replace(
            self,
            kept=self.kept if kept is None else kept,
            skipping=self.skipping if skipping is None else skipping,
        )

    def final_hidden(self, ids_NT: torch.Tensor, placing: Placing | None = None) -> torch.Tensor:
        """Hidden states after the last layer, float32 ``[N, T, D]``.

        Rows may be padded on the right, which is exact: attention is causal and experts see one
        token at a time. Tokens that are placed must be at most ``CHUNK_TOKENS``, or one row.
        """
        return self.final_hiddens([(ids_NT, placing)])[0]

    def final_hiddens(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The same for several batches in one pass over the layers."""
        hidden = [self.stream.embed(ids_NT) for ids_NT, _ in batches]
        for layer in self.layers:
            kept = self.kept.get(layer.index)
            beta = self.skipping.thresholds.get(layer.index)
            factors_E = self.skipping.factors.get(layer.index)
            for hidden_NTD, (ids_NT, placing) in zip(hidden, batches, strict=True):
                betas_T = None if beta is None else torch.full((ids_NT.numel(),), beta)
                step_(layer, [hidden_NTD], kept, betas_T, placing, factors_E)
        return hidden

    def log_probabilities(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """log softmax of the logits, float32 ``[T, V]``."""
        return self.stream.log_probabilities(hidden_TD)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a generation: of generation_config.json, else of config.json."""
        path = self.stream.checkpoint.path / "generation_config.json"
        said = {**self.stream.checkpoint.config, **(read_object(path) if path.is_file() else {})}
        ends = said.get("eos_token_id")
        found = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if not all(type(one) is int for one in found):
            raise CheckpointError(
                f"{self.stream.checkpoint.path} has the eos_token_id {ends!r}, expected a token id "
                "or a list of them; take the files of the original model"
            )
        return frozenset(found)

    @property
    def start_id(self) -> int:
        """What stands before a text without a prompt: the start token, an end token, or 0."""
        start = self.stream.checkpoint.config.get("bos_token_id")
        return start if type(start) is int else min(self.end_ids, default=0)

    @property
    def max_length(self) -> int:
        """Tokens the position embedding was made for."""
        return int(self.stream.config.max_position_embeddings)
