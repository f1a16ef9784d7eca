"""The cutter: a smaller checkpoint out of a checkpoint, shard by shard.

Tensors with a row per expert (router, its bias, stacked experts) are sliced, experts
of their own tensors re-indexed in ascending order of their source ids, layers for
speculative decoding dropped, everything else copied byte for byte. All shards are read and
checked before the first byte is written; the index is written last.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.provenance import file_digest
from leanmoe_pruning.model import WEIGHT_SUFFIXES, check_complete, model_files
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.shards import (
    INDEX_NAME,
    SINGLE_NAME,
    ShardReader,
    TensorInfo,
    write_index,
    write_shard,
)

_LOG = logging.getLogger(__name__)

Kept = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class _Piece:
    """One output tensor: where it comes from and which rows of it stay."""

    info: TensorInfo
    source: str
    rows: tuple[int, ...] | None = None

    def read(self, reader: ShardReader) -> torch.Tensor:
        tensor = reader.read(self.source)
        return tensor if self.rows is None else tensor[list(self.rows)]


class Cutter:
    """A cut decided and checked, not yet written."""

    def __init__(self, checkpoint: Checkpoint, kept: Kept) -> None:
        self.checkpoint = checkpoint
        self.kept = kept
        self.reader = ShardReader(checkpoint.path)
        check_complete(checkpoint, self.reader)
        self._blocks = tuple(
            f"{checkpoint.family.block_prefix(layer)}." for layer in checkpoint.shape.moe_layers
        )
        self._copied = frozenset(checkpoint.family.other_names(checkpoint.config))
        self.shards = {
            name: pieces
            for name, held in self.reader.shards.items()
            if (pieces := [piece for info in held.values() if (piece := self._piece(info))])
        }
        self._tell_of_spare_layers()

    def _tell_of_spare_layers(self) -> None:
        if dropped := sum(map(self._is_spare, self.reader.names)):
            _LOG.warning(
                "%s: the %d tensors of its layers for speculative decoding are dropped: they have "
                "experts of their own, which this cut does not choose among",
                self.checkpoint.path,
                dropped,
            )

    def _piece(self, info: TensorInfo) -> _Piece | None:
        family = self.checkpoint.family
        if self._is_spare(info.name):
            return None
        layer = family.expert_rows(info.name)
        if layer is not None and layer in self.kept:
            rows = tuple(self.kept[layer])
            shape = (len(rows), *info.shape[1:])
            return _Piece(TensorInfo(info.name, info.dtype, shape), info.name, rows)
        part = family.parse_expert(info.name)
        if part is None or part.layer not in self.kept:
            self._check_no_part_of_a_block(info.name)
            return _Piece(info, info.name)
        kept = list(self.kept[part.layer])
        if part.expert not in kept:
            return None
        name = family.expert_name(part.layer, kept.index(part.expert), part.projection)
        return _Piece(TensorInfo(name, info.dtype, info.shape), info.name)

    def _is_spare(self, name: str) -> bool:
        layer = self.checkpoint.family.layer_of(name)
        return layer is not None and layer >= self.checkpoint.shape.n_layers

    def _check_no_part_of_a_block(self, name: str) -> None:
        if name.startswith(self._blocks) and name not in self._copied:
            raise CheckpointError(
                f"{self.checkpoint.path} holds {name}, a part of a MoE block that belongs to "
                "experts in a way LeanMoE does not know (a scale of quantised weights?); restore "
                "the checkpoint to plain bf16 weights first"
            )

    @property
    def n_tensors(self) -> int:
        return len(self.reader.names)

    def validate(self, tick: Tick) -> None:
        """Read every source tensor; raise ``CheckpointError`` at the first NaN or infinity."""
        self.reader.validate(tick)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights the output will hold."""
        return sum(piece.info.nbytes for pieces in self.shards.values() for piece in pieces)

    def write(self, directory: Path, tick: Tick) -> dict[str, str]:
        """Write the lean checkpoint without its manifest; return the digest of each file."""
        digests = dict(self._copy_side_files(directory))
        digests["config.json"] = self._write_config(directory)
        for name, pieces in self.shards.items():
            digests[name] = self._write_shard(directory / name, pieces, tick)
        if list(self.shards) != [SINGLE_NAME]:
            plan = {name: [piece.info for piece in held] for name, held in self.shards.items()}
            write_index(directory, plan)
            digests[INDEX_NAME] = file_digest(directory / INDEX_NAME)
        return digests

    def _write_shard(self, path: Path, pieces: list[_Piece], tick: Callable[[], None]) -> str:
        def tensors() -> Iterator[torch.Tensor]:
            for piece in pieces:
                yield piece.read(self.reader)
                tick()

        return write_shard(path, [piece.info for piece in pieces], tensors())

    def _write_config(self, directory: Path) -> str:
        keep = len(next(iter(self.kept.values())))
        config = self.checkpoint.family.cut_config(self.checkpoint.config, keep)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        return file_digest(directory / "config.json")

    def _copy_side_files(self, directory: Path) -> Iterator[tuple[str, str]]:
        """Tokenizer, chat template, generation settings, licence: all that is not weights."""
        for file in model_files(self.checkpoint.path):
            if file.suffix in WEIGHT_SUFFIXES or file.name in ("config.json", INDEX_NAME):
                continue
            shutil.copyfile(file, directory / file.name)
            yield file.name, file_digest(directory / file.name)
