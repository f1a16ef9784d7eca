"""The random models of the run: one small one for the checks, two in real proportions to time."""

from __future__ import annotations

from dataclasses import dataclass

from leanmoe_bench.shapes import PlainShape, Shape


@dataclass(frozen=True)
class Qwen3Shape(PlainShape):
    """A Qwen3-MoE-architecture model: many narrow experts, normalised queries and keys."""

    def config(self) -> dict[str, object]:
        own = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.ffn,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "attention_bias": False,
        }
        return {**super().config(), **own}


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
