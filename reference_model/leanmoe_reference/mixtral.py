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
THIRD_RANK = 4
THIRD_LACKING = 48
THIRD_FILE = "mixtral_3.safetensors"
_FFN = (("w1", "gate"), ("w2", "down"), ("w3", "up"))


class LowRank(Protocol):
    """Routers and low-rank changes."""

    def gate(self, layer: int) -> Tensor:
        """The router's weight ``[E, D]``."""
        ...

    def factors(self, layer: int, expert: int, projection: str) -> tuple[Tensor, Tensor] | None:
        """A ``[R, in]`` and B ``[out, R]``, bfloat16; ``None`` for the unchanged layer."""
        ...

    def lacking(self, layer: int) -> Tensor | None:
        """The parent's neurons that each expert lacks ``[E, L]``; ``None``: none."""
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

    def lacking(self, layer: int) -> None:
        return None


@dataclass(frozen=True)
class RowFactors:
    """A later model's file: factors as int8 rows, one row per expert and rank."""

    artefact: Artefact

    def gate(self, layer: int) -> Tensor:
        return self.artefact.gate(layer)

    def factors(self, layer: int, expert: int, projection: str) -> tuple[Tensor, Tensor]:
        key = f"layers.{layer}.{projection}_proj"
        a, b = (self.artefact.weights(f"{key}.{side}").chunk(N_EXPERTS)[expert] for side in "AB")
        return a, b.T

    def lacking(self, layer: int) -> Tensor | None:
        return self.artefact.lacking(layer)


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
                whole = self._expert(layer, expert, projection, dense)
                yield name, self._reduced(whole, layer, expert) if ours == "w2" else whole

    def _expert(self, layer: int, expert: int, projection: str, dense: Tensor) -> Tensor:
        factors = self.low_rank.factors(layer, expert, projection)
        if factors is None:
            return dense
        a, b = factors
        changed: Tensor = (dense.float() + SCALE * (b.float() @ a.float())).bfloat16()
        return changed

    def _reduced(self, down_DF: Tensor, layer: int, expert: int) -> Tensor:
        """Without the neurons that the expert lacks: nothing of them reaches the output."""
        lacking_EL = self.low_rank.lacking(layer)
        if lacking_EL is None:
            return down_DF
        return down_DF.index_fill(1, lacking_EL[expert].long(), 0)

    def config(self) -> dict[str, Any]:
        """``config.json`` of the checkpoint."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            **common_config(self.base),
            "num_experts_per_tok": TOP_K,
            "num_local_experts": N_EXPERTS,
        }
