"""Mixtral: every layer is MoE, softmax over all experts, top-k renormalised."""

from __future__ import annotations

import re
from typing import Any

from leanmoe.families.base import Config, ExpertTensor, Family, MoEShape, Projection

_FILE_NAMES: dict[Projection, str] = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_PROJECTIONS = {file_name: projection for projection, file_name in _FILE_NAMES.items()}
_EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.(w1|w2|w3)\.weight")
_GATE = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.gate\.weight")


def _shape(config: Config) -> MoEShape:
    return MoEShape(
        n_layers=config["num_hidden_layers"],
        moe_layers=tuple(range(config["num_hidden_layers"])),
        n_routed_experts=config["num_local_experts"],
        top_k=config["num_experts_per_tok"],
        hidden_size=config["hidden_size"],
        expert_ffn_size=config["intermediate_size"],
        renormalize=True,
    )


def _block_prefix(layer: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe"


def _gate_name(layer: int) -> str:
    return f"{_block_prefix(layer)}.gate.weight"


def _expert_name(layer: int, expert: int, projection: Projection) -> str:
    return f"{_block_prefix(layer)}.experts.{expert}.{_FILE_NAMES[projection]}.weight"


def _parse_expert(name: str) -> ExpertTensor | None:
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    layer, expert, file_name = match.groups()
    return ExpertTensor(int(layer), int(expert), _PROJECTIONS[file_name])


def _gate_layer(name: str) -> int | None:
    match = _GATE.fullmatch(name)
    return int(match[1]) if match else None


def _cut_config(config: Config, keep: int) -> dict[str, Any]:
    return {**config, "num_local_experts": keep}


MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    shape=_shape,
    block_prefix=_block_prefix,
    gate_name=_gate_name,
    expert_name=_expert_name,
    parse_expert=_parse_expert,
    gate_layer=_gate_layer,
    cut_config=_cut_config,
)
