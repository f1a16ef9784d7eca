"""The reference models by name: what each is made of and the digests it is pinned to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leanmoe_reference import mixtral, small_experts
from leanmoe_reference.artefact import Artefact
from leanmoe_reference.build import Rebuilt
from leanmoe_reference.gguf_base import GGUFBase


@dataclass(frozen=True)
class Model:
    """How a model is put together of the files in a folder, and the digests of what ships."""

    make: Callable[[GGUFBase, Path], Rebuilt]
    files: Mapping[str, str]
    tensors: str


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
        {
            small_experts.FILE: (
                "sha256:0266818153f28d7a1848ac2014514dfac0a36c01bd461559092ab03834feda64"
            )
        },
        "sha256:2cb0871e6565e8a67b81e9b20b40924e7f4c277bb5cfcdaf6e45c8429355b32c",
    ),
    "mixtral-2": Model(
        lambda base, folder: mixtral.MixtralModel(
            base, mixtral.RowFactors(Artefact(folder / mixtral.SECOND_FILE))
        ),
        {
            mixtral.SECOND_FILE: (
                "sha256:1ab66a6d331f614d61ac022e8294c4fa0a6f5a32ba98afbaf2c392018b5e89ff"
            )
        },
        "sha256:a5a98fcc5fcb68c4f3ceac117c1d1d498eb214c7fa3010d94d631028ec6a0c1f",
    ),
    "mixtral-3": Model(
        lambda base, folder: mixtral.MixtralModel(
            base, mixtral.RowFactors(Artefact(folder / mixtral.THIRD_FILE))
        ),
        {
            mixtral.THIRD_FILE: (
                "sha256:27e450234f99154e1c4dab493aa202e7b1d5323663b91ff6a80d706c12bd1d4e"
            )
        },
        "sha256:55f5fffed8080ede006545455dedf2250dcd3c8f27b458b938c72139f7ffa206",
    ),
}
DEFAULT = "mixtral"
