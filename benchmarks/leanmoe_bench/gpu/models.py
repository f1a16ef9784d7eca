"""The random models of the run: one small one for the checks, two in real proportions to time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanmoe_bench.shapes import Shape

_QWEN_NAMES = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


@dataclass(frozen=True)
class Qwen3Shape(Shape):
    """A Qwen3-MoE-architecture model: many narrow experts, normalised queries and keys."""

    def tensor_name(self, mixtral: str) -> str:
        for old, new in _QWEN_NAMES.items():
            mixtral = mixtral.replace(old, new)
        return mixtral

    def more_tensors(self, layer: int) -> dict[str, torch.Tensor]:
        return {
            f"model.layers.{layer}.self_attn.{name}.weight": torch.ones(
                self.head_dim, dtype=torch.bfloat16
            )
            for name in ("q_norm", "k_norm")
        }

    def config(self) -> dict[str, object]:
        own = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": self.experts,
            "moe_intermediate_size": self.ffn,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "attention_bias": False,
        }
        common = super().config()
        del common["num_local_experts"]
        return {**common, **own}


# Its border between the Triton experts' two paths lies at 4 tokens (4 * top-2 * 4 <= 32).
CHECKED = Shape(
    name="check",
    hidden=1024,
    ffn=1024,
    experts=32,
    top_k=2,
    layers=2,
    heads=8,
    kv_heads=2,
    head_dim=128,
    vocabulary=8192,
)
# Two layers of Mixtral 8x7B and four of Qwen3-30B-A3B: as wide as the real ones.
TIMED: tuple[Shape, ...] = (
    Shape(
        name="mixtral",
        hidden=4096,
        ffn=14336,
        experts=8,
        top_k=2,
        layers=2,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocabulary=32000,
    ),
    Qwen3Shape(
        name="qwen3-moe",
        hidden=2048,
        ffn=768,
        experts=128,
        top_k=8,
        layers=4,
        heads=32,
        kv_heads=4,
        head_dim=128,
        vocabulary=32000,
    ),
)
