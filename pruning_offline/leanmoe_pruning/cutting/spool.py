"""Final weights put aside, layer by layer, until the cutter writes them.

A method that changes weights one by one cannot keep them all in memory. It leaves each
layer's in a hidden folder beside the output, under the names of the source's tensors, and
the cutter takes them from there wherever it would read the source's.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import safe_open

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import OutputError
from leanmoe.files.scratch import SPOOL, ScratchFolder, remove_folder
from leanmoe_pruning.checkpoints.shards import ShardReader, read_header, write_tensors
from leanmoe_pruning.later import torch


class WeightSpool:
    """A folder of safetensors files, one per layer; gone when its block ends."""

    def __init__(self, directory: Path, own: ScratchFolder | None = None) -> None:
        self.directory = directory
        self._own = own
        self._file_of: dict[str, Path] = {}

    @classmethod
    def beside(cls, out: Path) -> Self:
        """An empty spool in a hidden sibling of ``out``."""
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            folder = ScratchFolder.beside(out, SPOOL)
            return cls(folder.path, folder)
        except OSError as error:
            raise OutputError(f"could not write beside {out}: {error.strerror}") from error

    def put(self, layer: int, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a layer's final tensors by the names they have in the source."""
        path = self._file(layer)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors)
        except OSError as error:
            raise OutputError(f"could not write {path}: {error.strerror}") from error
        self._file_of |= dict.fromkeys(tensors, path)

    def find(self, layer: int) -> None:
        """Take up a layer that was put here by an earlier process."""
        path = self._file(layer)
        self._file_of |= dict.fromkeys(read_header(path), path)

    def _file(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:03d}.safetensors"

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def read(self, name: str) -> torch.Tensor:
        """One tensor; ``KeyError`` where there is none of the name."""
        # Opened per tensor: a mapping that stays open would keep what was read in memory.
        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def remove(self) -> None:
        remove_folder(self.directory)
        if self._own is not None:
            self._own.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self.remove()


class SpooledReader(ShardReader):
    """A checkpoint's tensors, those of a spool in place of its own."""

    def __init__(self, checkpoint: Checkpoint, spool: WeightSpool) -> None:
        super().__init__(checkpoint.path, checkpoint.family.stacks)
        self._spool = spool

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:  # type: ignore[override]
        return self._spool.read(name) if name in self._spool else super().read(name, shape)
