"""Models with random weights in the proportions of real ones, at a size for one small machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from leanmoe.files.output import atomic_directory

_GATE_SPREAD = 1.0


@dataclass(frozen=True)
class Shape:
    """A Mixtral-architecture model; subclasses say what another family has of its own."""

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
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_local_experts": self.experts,
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


_PLAIN_NAMES = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


@dataclass(frozen=True)
class PlainShape(Shape):
    """A model that names its projections as they are, and norms queries and keys."""

    @property
    def norm_widths(self) -> dict[str, int]:
        """Width of each of the two norms."""
        return {"q_norm": self.head_dim, "k_norm": self.head_dim}

    def tensor_name(self, mixtral: str) -> str:
        for old, new in _PLAIN_NAMES.items():
            mixtral = mixtral.replace(old, new)
        return mixtral

    def more_tensors(self, layer: int) -> dict[str, torch.Tensor]:
        return {
            f"model.layers.{layer}.self_attn.{name}.weight": torch.ones(width, dtype=torch.bfloat16)
            for name, width in self.norm_widths.items()
        }

    def config(self) -> dict[str, object]:
        common = super().config()
        count = common.pop("num_local_experts")
        return {**common, "num_experts": count}


@dataclass(frozen=True)
class OlmoeShape(PlainShape):
    """OLMoE: the weights of the chosen experts are not renormalised; norms span all heads."""

    @property
    def norm_widths(self) -> dict[str, int]:
        return {"q_norm": self.heads * self.head_dim, "k_norm": self.kv_heads * self.head_dim}

    def config(self) -> dict[str, object]:
        own = {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe"}
        return {**super().config(), **own, "norm_topk_prob": False}


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
    "F": OlmoeShape(
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


def write_checkpoint(shape: Shape, target: Path, seed: int) -> Path:
    """Write the random checkpoint to ``target`` unless it is there; one shard per layer."""
    if (target / "config.json").exists():
        return target
    generator = torch.Generator().manual_seed(seed)
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
    return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, scale, generator=generator)


def _outer(shape: Shape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": _normal(generator, shape.vocabulary, shape.hidden, std=1.0),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }


def _layer(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{layer}"
    block = f"{prefix}.block_sparse_moe"
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
    for expert in range(shape.experts):
        name = f"{block}.experts.{expert}"
        tensors[f"{name}.w1.weight"] = _normal(generator, shape.ffn, shape.hidden)
        tensors[f"{name}.w3.weight"] = _normal(generator, shape.ffn, shape.hidden)
        tensors[f"{name}.w2.weight"] = _normal(generator, shape.hidden, shape.ffn)
    return tensors
