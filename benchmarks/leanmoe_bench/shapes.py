"""Models with random weights in the proportions of real ones, at a size for one small machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from leanmoe.provenance import atomic_directory

_GATE_SPREAD = 1.0


@dataclass(frozen=True)
class Shape:
    """A model of one of two architectures.

    Mixtral renormalises the weights of the chosen experts; OLMoE does not, and norms queries
    and keys.
    """

    name: str
    hidden: int
    ffn: int
    experts: int
    top_k: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    architecture: Literal["mixtral", "olmoe"] = "mixtral"

    @property
    def expert_parameters(self) -> int:
        return 3 * self.hidden * self.ffn

    @property
    def attention_parameters(self) -> int:
        """Query, key, value and output projections of one layer."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    def tensor_name(self, mixtral: str) -> str:
        """The family's own name of a tensor, from Mixtral's."""
        return mixtral

    def more_tensors(self, layer: int) -> dict[str, torch.Tensor]:
        """What the family has in a layer and Mixtral has not."""
        return {}

    def config(self) -> dict[str, object]:
        """The ``config.json`` of the model; embeddings are tied."""
        return {
            **_ARCHITECTURES[self.architecture],
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            _COUNT_KEYS[self.architecture]: self.experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


_ARCHITECTURES: dict[str, dict[str, object]] = {
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "norm_topk_prob": False,
    },
}
_COUNT_KEYS = {"mixtral": "num_local_experts", "olmoe": "num_experts"}
_BLOCKS = {"mixtral": "block_sparse_moe", "olmoe": "mlp"}
# gate, up, down
_PROJECTIONS = {"mixtral": ("w1", "w3", "w2"), "olmoe": ("gate_proj", "up_proj", "down_proj")}

SHAPES = {
    "M": Shape(
        name="M",
        hidden=2048,
        ffn=7168,
        experts=8,
        top_k=2,
        layers=6,
        heads=16,
        kv_heads=4,
        head_dim=128,
        vocabulary=8192,
    ),
    # Fine-grained: many small experts, many of them per token.
    "F": Shape(
        name="F",
        hidden=1024,
        ffn=512,
        experts=64,
        top_k=8,
        layers=8,
        heads=8,
        kv_heads=8,
        head_dim=128,
        vocabulary=8192,
        architecture="olmoe",
    ),
    # The embedded reference model's: many thin layers, so that fixed costs show.
    "R": Shape(
        name="R",
        hidden=576,
        ffn=1536,
        experts=8,
        top_k=2,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=49152,
    ),
    "tiny": Shape(
        name="tiny",
        hidden=128,
        ffn=256,
        experts=8,
        top_k=2,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        vocabulary=512,
    ),
}


def write_checkpoint(shape: Shape, target: Path, seed: int, device: str = "cpu") -> Path:
    """Write the random checkpoint to ``target`` unless it is there; one shard per layer.

    ``device`` draws the numbers; each draws others from the same seed.
    """
    if (target / "config.json").exists():
        return target
    generator = torch.Generator(device).manual_seed(seed)
    with atomic_directory(target, force=True) as directory:
        index: dict[str, str] = {}
        for layer in range(-1, shape.layers):
            drawn = _outer(shape, generator) if layer < 0 else _layer(shape, layer, generator)
            tensors = {shape.tensor_name(name): tensor for name, tensor in drawn.items()}
            tensors |= shape.more_tensors(layer) if layer >= 0 else {}
            name = f"model-{layer + 2:05d}-of-{shape.layers + 1:05d}.safetensors"
            save_file(tensors, directory / name)
            index |= dict.fromkeys(tensors, name)
        (directory / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
        (directory / "config.json").write_text(json.dumps(shape.config(), indent=2))
    return target


def _normal(generator: torch.Generator, *size: int, std: float | None = None) -> torch.Tensor:
    scale = size[-1] ** -0.5 if std is None else std
    drawn = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    return drawn.normal_(0.0, scale, generator=generator).cpu()


def _outer(shape: Shape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": _normal(generator, shape.vocabulary, shape.hidden, std=1.0),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }


def _layer(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{layer}"
    block = f"{prefix}.{_BLOCKS[shape.architecture]}"
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    tensors = {
        f"{prefix}.input_layernorm.weight": ones,
        f"{prefix}.post_attention_layernorm.weight": ones.clone(),
        f"{prefix}.self_attn.q_proj.weight": _normal(generator, query, shape.hidden),
        f"{prefix}.self_attn.k_proj.weight": _normal(generator, key, shape.hidden),
        f"{prefix}.self_attn.v_proj.weight": _normal(generator, key, shape.hidden),
        f"{prefix}.self_attn.o_proj.weight": _normal(generator, shape.hidden, query),
        f"{block}.gate.weight": _normal(
            generator, shape.experts, shape.hidden, std=_GATE_SPREAD * shape.hidden**-0.5
        ),
    }
    if shape.architecture == "olmoe":
        tensors[f"{prefix}.self_attn.q_norm.weight"] = torch.ones(query, dtype=torch.bfloat16)
        tensors[f"{prefix}.self_attn.k_norm.weight"] = torch.ones(key, dtype=torch.bfloat16)
    gate, up, down = _PROJECTIONS[shape.architecture]
    for expert in range(shape.experts):
        name = f"{block}.experts.{expert}"
        tensors[f"{name}.{gate}.weight"] = _normal(generator, shape.ffn, shape.hidden)
        tensors[f"{name}.{up}.weight"] = _normal(generator, shape.ffn, shape.hidden)
        tensors[f"{name}.{down}.weight"] = _normal(generator, shape.hidden, shape.ffn)
    return tensors
