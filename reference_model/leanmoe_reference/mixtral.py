"""The models of Mixtral's shape: experts are the parent's feed-forward layer, changed by low rank.

``W = bf16(bf16(base) + 2 B A)``, multiplied and added in float32 and rounded once. Rank 8
and bfloat16 factors make every product exact in float32, so the result does not depend on
whether a CPU fuses multiply and add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from leanmoe_reference.artefact import FOLDER, Artefact
from leanmoe_reference.dense import (
    attention_tensors,
    common_config,
    feed_forward,
    model_tensors,
)
from leanmoe_reference.gguf_base import GGUFBase

Tensor = torch.Tensor
N_EXPERTS = 8
TOP_K = 2
RANK = 8
SCALE = 2.0
ADAPTERS = "adapters.safetensors"
ROUTERS = "routers.safetensors"
SECOND_FILE = "mixtral_2.safetensors"
_FFN = (("w1", "gate"), ("w2", "down"), ("w3", "up"))


class LowRank(Protocol):
    """Routers and low-rank changes."""

    def gate(self, layer: int) -> Tensor:
        """The router's weight ``[E, D]``."""
        ...

    def factors(self, layer: int, expert: int, projection: str) -> tuple[Tensor, Tensor] | None:
        """A ``[R, in]`` and B ``[out, R]``, bfloat16; ``None`` for the unchanged layer."""
        ...


@dataclass(frozen=True)
class FirstFactors:
    """The first model's files: bfloat16 factors, expert 0 unchanged."""

    directory: Path = FOLDER

    @cached_property
    def _adapters(self) -> Any:
        return safe_open(self.directory / ADAPTERS, framework="pt")

    @cached_property
    def _routers(self) -> Any:
        return safe_open(self.directory / ROUTERS, framework="pt")

    def gate(self, layer: int) -> Tensor:
        gate: Tensor = self._routers.get_tensor(f"layers.{layer}.gate.weight")
        return gate

    def factors(self, layer: int, expert: int, projection: str) -> tuple[Tensor, Tensor] | None:
        if expert == 0:
            return None
        key = f"layers.{layer}.experts.{expert}.{projection}_proj"
        a, b = (self._adapters.get_tensor(f"{key}.lora_{side}.weight") for side in "AB")
        return a, b


@dataclass(frozen=True)
class SecondFactors:
    """The second model's file: factors as int8 rows, one row per rank."""

    artefact: Artefact

    def gate(self, layer: int) -> Tensor:
        return self.artefact.gate(layer)

    def factors(self, layer: int, expert: int, projection: str) -> tuple[Tensor, Tensor]:
        key = f"layers.{layer}.{projection}_proj"
        ranks = slice(expert * RANK, (expert + 1) * RANK)
        return (
            self.artefact.weights(f"{key}.A")[ranks],
            self.artefact.weights(f"{key}.B")[ranks].T,
        )


@dataclass(frozen=True)
class MixtralModel:
    """The tensors of the model by checkpoint name, made when asked for."""

    base: GGUFBase
    low_rank: LowRank

    @property
    def n_layers(self) -> int:
        return int(self.base.field("llama.block_count"))

    def embedding(self) -> Iterator[tuple[str, Tensor]]:
        yield from model_tensors(self.base)

    def layer(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of one decoder layer, bfloat16."""
        yield from attention_tensors(self.base, layer)
        prefix = f"model.layers.{layer}.block_sparse_moe"
        yield f"{prefix}.gate.weight", self.low_rank.gate(layer)
        for ours, projection in _FFN:
            dense = feed_forward(self.base, layer, projection)
            for expert in range(N_EXPERTS):
                name = f"{prefix}.experts.{expert}.{ours}.weight"
                yield name, self._expert(layer, expert, projection, dense)

    def _expert(self, layer: int, expert: int, projection: str, dense: Tensor) -> Tensor:
        factors = self.low_rank.factors(layer, expert, projection)
        if factors is None:
            return dense
        a, b = factors
        changed: Tensor = (dense.float() + SCALE * (b.float() @ a.float())).bfloat16()
        return changed

    def config(self) -> dict[str, Any]:
        """``config.json`` of the checkpoint."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            **common_config(self.base),
            "num_experts_per_tok": TOP_K,
            "num_local_experts": N_EXPERTS,
        }
