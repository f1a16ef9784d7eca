"""A file of trained parts: routers in bfloat16, experts as int8 rows, one per neuron or rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from leanmoe.errors import InputError
from leanmoe.files.digest import file_digest
from leanmoe_reference.rows import from_rows, to_rows

Tensor = torch.Tensor
FOLDER = Path(__file__).parent


def check_artefacts(digests: Mapping[str, str], directory: Path = FOLDER) -> None:
    """Raise unless the trained parts are the files that the model's digest was pinned for."""
    for name, expected in digests.items():
        path = directory / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing from the installation; install leanmoe-reference again"
            )
        found = file_digest(path)
        if found != expected:
            raise InputError(
                f"{path} is damaged (found {found}, expected {expected}); "
                "install leanmoe-reference again"
            )


def pack(
    gates: Mapping[str, Tensor], weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The file's tensors: ``weights`` ``[U, D]`` as rows and scales, ``fixed`` as it is."""
    held = {f"{name}.weight": gate.bfloat16().contiguous() for name, gate in gates.items()}
    held |= fixed
    for name, weights_UD in weights.items():
        held[f"{name}.rows"], held[f"{name}.scale"] = to_rows(weights_UD)
    return dict(sorted(held.items()))


@dataclass(frozen=True)
class Artefact:
    """An open file of trained parts."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"{self.path} is missing: give the folder that a training wrote")

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, framework="pt")

    def gate(self, layer: int) -> Tensor:
        """The router's weight ``[E, D]``, bfloat16."""
        gate: Tensor = self._file.get_tensor(f"layers.{layer}.gate.weight")
        return gate

    def lacking(self, layer: int) -> Tensor | None:
        """The parent's neurons that each expert lacks ``[E, L]``, int16; ``None``: none."""
        key = f"layers.{layer}.lacking"
        held = set(self._file.keys())
        found: Tensor | None = self._file.get_tensor(key) if key in held else None
        return found

    def weights(self, name: str) -> Tensor:
        """One matrix, a row per neuron or rank, bfloat16."""
        return from_rows(
            self._file.get_tensor(f"{name}.rows"), self._file.get_tensor(f"{name}.scale")
        )
