"""The second reference model, Qwen2-MoE's shape: the dense parent and small experts beside it.

Every third layer has a block with experts. Its shared expert is the parent's feed-forward
layer; the gate of a shared expert is a sigmoid, whose weight of zero halves the output, so
the shared down projection is doubled, which bfloat16 does exactly. Queries, keys and values
have biases in this architecture; they are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_reference.artefact import Artefact
from leanmoe_reference.dense import (
    PROJECTIONS,
    attention_tensors,
    common_config,
    feed_forward,
    model_tensors,
)
from leanmoe_reference.gguf_base import GGUFBase

N_EXPERTS = 16
TOP_K = 4
WIDTH = 64
STEP = 3
FILE = "qwen2_moe.safetensors"


def moe_layers(n_layers: int) -> tuple[int, ...]:
    """The layers with experts, as the family's ``decoder_sparse_step`` counts them."""
    return tuple(layer for layer in range(n_layers) if (layer + 1) % STEP == 0)


@dataclass(frozen=True)
class SmallExpertModel:
    """The tensors of the model by checkpoint name, made when asked for."""

    base: GGUFBase
    artefact: Artefact

    @property
    def n_layers(self) -> int:
        return int(self.base.field("llama.block_count"))

    def embedding(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from model_tensors(self.base)

    def layer(self, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of one decoder layer, bfloat16."""
        prefix = f"model.layers.{layer}"
        for name, tensor in attention_tensors(self.base, layer):
            yield name, tensor
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                yield name.replace(".weight", ".bias"), tensor.new_zeros(tensor.shape[0])
        dense = {name: feed_forward(self.base, layer, name) for name in PROJECTIONS}
        if layer in moe_layers(self.n_layers):
            yield from self._block(layer, dense)
        else:
            for name in PROJECTIONS:
                yield f"{prefix}.mlp.{name}_proj.weight", dense[name]

    def _block(
        self, layer: int, dense: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        prefix = f"model.layers.{layer}.mlp"
        yield f"{prefix}.gate.weight", self.artefact.gate(layer)
        yield (
            f"{prefix}.shared_expert_gate.weight",
            dense["gate"].new_zeros(1, dense["gate"].shape[1]),
        )
        for name in PROJECTIONS:
            weight = dense[name] * 2 if name == "down" else dense[name]
            yield f"{prefix}.shared_expert.{name}_proj.weight", weight
        for name in PROJECTIONS:
            every = self.artefact.weights(f"layers.{layer}.{name}_proj")
            for expert, rows in enumerate(torch.split(every, WIDTH)):
                weight = rows.T.contiguous() if name == "down" else rows.clone()
                yield f"{prefix}.experts.{expert}.{name}_proj.weight", weight

    def config(self) -> dict[str, Any]:
        """``config.json`` of the checkpoint."""
        common = common_config(self.base)
        return {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            **common,
            "decoder_sparse_step": STEP,
            "max_window_layers": self.n_layers,
            "mlp_only_layers": [],
            "moe_intermediate_size": WIDTH,
            "norm_topk_prob": True,
            "num_experts": N_EXPERTS,
            "num_experts_per_tok": TOP_K,
            "shared_expert_intermediate_size": common["intermediate_size"],
            "use_sliding_window": False,
        }
