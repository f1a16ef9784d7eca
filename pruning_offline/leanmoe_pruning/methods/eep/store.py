"""Every evaluated individual on disk, so that a search goes on where it was stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from leanmoe.errors import OutputError
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.methods.eep.individual import Individual


@dataclass(frozen=True)
class Store:
    """One file per evaluation, written beside its name and renamed, so that none is half there."""

    directory: Path

    def open(self) -> None:
        """Make the directory; ``OutputError`` where that cannot be."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"could not write {self.directory}: {error.strerror}") from error

    def score(self, name: str, individual: Individual) -> float | None:
        """What ``individual`` scored under that name, ``None`` where it was not evaluated."""
        path = self._path(name)
        if not path.is_file():
            return None
        held = load_file(path)
        same = Individual(held["experts"], held["router"]).digest() == individual.digest()
        return float(held["score"]) if same else None

    def add(self, name: str, individual: Individual, score: float) -> None:
        """Keep a score; a full disk leaves those before."""
        path, partial = self._path(name), self.directory / f"{name}.part"
        tensors = {
            "experts": individual.experts.contiguous(),
            "router": individual.router.contiguous(),
            "score": torch.tensor(score, dtype=torch.float64),
        }
        try:
            write_tensors(partial, tensors)
            partial.replace(path)
        except OSError as error:
            raise OutputError(
                f"could not write {path}: {error.strerror}; the search goes on from the last "
                "individual that was kept when the same command is given again"
            ) from error

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def remove(self) -> None:
        """All of it, when the result is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
