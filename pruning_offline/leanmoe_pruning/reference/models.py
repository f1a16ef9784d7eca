"""The reference models by name: what each is made of and the digests it is pinned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leanmoe_pruning.reference import mixtral, small_experts
from leanmoe_pruning.reference.artefact import Artefact
from leanmoe_pruning.reference.build import Rebuilt
from leanmoe_pruning.reference.gguf_base import GGUFBase


@dataclass(frozen=True)
class Model:
    """How a model is put together of the files in a folder, and the digests of what ships.

    One that does not ship has neither ``files`` nor ``tensors``: it has to be trained first.
    """

    make: Callable[[GGUFBase, Path], Rebuilt]
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: str = ""


MODELS: Mapping[str, Model] = {
    "mixtral": Model(
        lambda base, folder: mixtral.MixtralModel(base, mixtral.FirstFactors(folder)),
        {
            mixtral.ADAPTERS: (
                "sha256:c690787024635b7733e165e5b9ab91cd1ba6dc3033fee192253f4f80611a0a3f"
            ),
            mixtral.ROUTERS: (
                "sha256:d2692b78608ab7fe522977f05ae6344a165da6ce088798f05ae254c6935e9419"
            ),
        },
        "sha256:ef3f827444d471b39a6867c102852081329a997d144b494cf1c95dae0ce67c8b",
    ),
    "qwen2-moe": Model(
        lambda base, folder: small_experts.SmallExpertModel(
            base, Artefact(folder / small_experts.FILE)
        ),
    ),
    "mixtral-2": Model(
        lambda base, folder: mixtral.MixtralModel(
            base, mixtral.SecondFactors(Artefact(folder / mixtral.SECOND_FILE))
        ),
    ),
}
DEFAULT = "mixtral"
