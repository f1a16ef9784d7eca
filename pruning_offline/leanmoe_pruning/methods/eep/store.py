"""Every evaluated individual on disk, so that a search goes on where it was stopped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leanmoe.errors import OutputError
from leanmoe.files.resuming import kept_in
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.methods.eep.individual import Individual

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """One file per evaluation, written beside its name and renamed, so that none is half there."""

    directory: Path

    def score(self, name: str, individual: Individual) -> float | None:
        """What ``individual`` scored under that name, ``None`` where it was not evaluated."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            held = load_file(path)
            same = Individual(held["experts"], held["router"]).digest() == individual.digest()
            return float(held["score"]) if same else None
        except (SafetensorError, LookupError, ValueError) as error:
            _LOG.warning("%s is damaged (%s): its individual is evaluated again", path, error)
            return None

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
                f"could not write {path}: {error.strerror}; {kept_in(self.directory)}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"
