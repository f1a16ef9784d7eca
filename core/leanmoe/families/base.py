"""What every model family must say about its checkpoints: config keys, MoE layers, tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Projection = Literal["gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
Config = Mapping[str, Any]


@dataclass(frozen=True)
class MoEShape:
    """The numbers a method needs, in the project's own words."""

    n_layers: int
    moe_layers: tuple[int, ...]
    n_routed_experts: int
    top_k: int
    hidden_size: int
    expert_ffn_size: int
    renormalize: bool


@dataclass(frozen=True)
class ExpertTensor:
    """A checkpoint tensor that belongs to one expert."""

    layer: int
    expert: int
    projection: Projection


@dataclass(frozen=True)
class Family:
    """One model family. Names are those in the FILES, not those of any library's modules."""

    name: str
    architectures: tuple[str, ...]
    # ValueError, in words, for a config that does not describe such a model.
    shape: Callable[[Config], MoEShape]
    # Names of all tensors outside the MoE blocks, without which no such model can run.
    other_names: Callable[[Config], list[str]]
    # The decoder layer a tensor's name speaks of, or None.
    layer_of: Callable[[str], int | None]
    block_prefix: Callable[[int], str]
    gate_name: Callable[[int], str]
    expert_name: Callable[[int, int, Projection], str]
    parse_expert: Callable[[str], ExpertTensor | None]
    gate_layer: Callable[[str], int | None]
    cut_config: Callable[[Config, int], dict[str, Any]]
