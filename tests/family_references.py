"""Logits of a tiny family: of transformers' own model, and of our layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny_families import FAMILY_NAMES, write_tiny

# transformers has no class for the first DeepSeek; the golden set speaks for it.
WITH_CLASS = tuple(name for name in FAMILY_NAMES if name != "deepseek")
# Values that leave nothing at its neutral setting.
TELLING: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": 7},
    "qwen2_moe": {"norm_topk_prob": True},
    "deepseek_v2": {"topk_group": 1},
    "granitemoe": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
    },
}


def change_config(path: Path, **values: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def write_telling(path: Path, name: str) -> Path:
    """A tiny model of the family with multipliers, groups and windows that do something."""
    write_tiny(path, name, dtype="float32")
    change_config(path, **TELLING.get(name, {}))
    return path


def transformers_logits(path: Path, ids_NT: torch.Tensor) -> torch.Tensor:
    """Logits ``[N, T, V]`` of the checkpoint at ``path``, float32."""
    config = json.loads((path / "config.json").read_text())
    given: dict[str, Any] = {}
    if config["model_type"] == "olmoe":
        given["norm_topk_prob"] = False  # vLLM does not read it
    if config["model_type"] == "phimoe":
        given["architectures"] = ["PhimoeForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", **given
    )
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(ids_NT).logits
    return logits


@torch.inference_mode()
def streamed_logits(
    path: Path, ids_NT: torch.Tensor, kept: dict[int, list[int]] | None = None
) -> torch.Tensor:
    """Our own, layer by layer; of ``kept`` source experts alone where they are given."""
    stream = DecoderStream(open_model(path))
    hidden = embed_all(stream, [ids_NT])
    for layer in stream.layers():
        step_(layer, hidden, None if kept is None else kept.get(layer.index))
    return stream.logits(hidden[0])
