"""The frozen dense parent with a trainable block in place of its feed-forward layers.

Products in bfloat16 where the processor has fast ones and in float32 elsewhere (gradients through
the head take fifty times as long in bfloat16 on x86 before AVX-512), a float32 residual stream;
everything but the block's own parameters is frozen, so a step costs one forward and the gradients
of activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from leanmoe_pruning.precision import default_precision
from leanmoe_reference.dense import attention_tensors, feed_forward, model_tensors
from leanmoe_reference.gguf_base import GGUFBase

Tensor = torch.Tensor
EPS = 1e-5


@dataclass(frozen=True)
class FrozenLayer:
    """One decoder layer of the parent: attention and norms by checkpoint name, and its FFN."""

    named: dict[str, Tensor]
    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor

    def feed_forward(self, x_MD: Tensor) -> Tensor:
        """The parent's own block output."""
        hidden = functional.silu(x_MD @ self.gate_FD.T) * (x_MD @ self.up_FD.T)
        return hidden @ self.down_DF.T


Block = Callable[[int, Tensor, FrozenLayer], Tensor]


@dataclass(frozen=True)
class Parent:
    """The dense parent, or its first layers, ready to run in the type its weights are held in."""

    embedding_VD: Tensor
    norm_D: Tensor
    layers: list[FrozenLayer]
    heads: tuple[int, int]
    theta: float

    @staticmethod
    def load(
        base: GGUFBase, n_layers: int | None = None, compute: torch.dtype | None = None
    ) -> Parent:
        """Read the parent; ``n_layers`` cuts it down, ``compute`` is what products are taken in."""
        compute = compute or getattr(torch, default_precision(torch.bfloat16.itemsize))
        held = {name: tensor.to(compute) for name, tensor in model_tensors(base)}
        count = int(base.field("llama.block_count")) if n_layers is None else n_layers
        return Parent(
            held["model.embed_tokens.weight"],
            held["model.norm.weight"],
            [_frozen_layer(base, layer, compute) for layer in range(count)],
            (
                base.field("llama.attention.head_count"),
                base.field("llama.attention.head_count_kv"),
            ),
            float(base.field("llama.rope.freq_base")),
        )

    @property
    def compute(self) -> torch.dtype:
        """What products are taken in."""
        return self.embedding_VD.dtype

    def hidden(self, ids_NT: Tensor, block: Block) -> Tensor:
        """The normed last hidden states ``[N, T, D]``."""
        stream_NTD = self.embedding_VD[ids_NT].float()
        turn = self._rotation(ids_NT.shape[1])
        for index, layer in enumerate(self.layers):
            x_NTD = _norm(stream_NTD, layer.named["input_layernorm"])
            stream_NTD = stream_NTD + self._attend(x_NTD, layer.named, turn).float()
            x_NTD = _norm(stream_NTD, layer.named["post_attention_layernorm"])
            out_MD = block(index, x_NTD.flatten(0, 1), layer)
            stream_NTD = stream_NTD + out_MD.float().view_as(stream_NTD)
        return _norm(stream_NTD, self.norm_D)

    def _attend(
        self, x_NTD: Tensor, named: dict[str, Tensor], turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        def heads(name: str, count: int) -> Tensor:
            flat = x_NTD @ named[f"self_attn.{name}_proj"].T
            return flat.view(*flat.shape[:2], count, -1).transpose(1, 2)

        queries, keys = self.heads
        mixed = functional.scaled_dot_product_attention(
            _rotate(heads("q", queries), turn),
            _rotate(heads("k", keys), turn),
            heads("v", keys),
            is_causal=True,
            enable_gqa=True,
        )
        return mixed.transpose(1, 2).flatten(2) @ named["self_attn.o_proj"].T

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        width = self.embedding_VD.shape[1] // self.heads[0]
        rates = self.theta ** (-torch.arange(0, width, 2).float() / width)
        angles = torch.outer(torch.arange(length).float(), rates)
        full = torch.cat((angles, angles), dim=-1)
        return full.cos().to(self.compute), full.sin().to(self.compute)

    def losses(self, ids_NT: Tensor, block: Block) -> Tensor:
        """Next-token loss of every position but the last, ``[N, T - 1]`` float32 nats."""
        hidden = self.hidden(ids_NT, block)[:, :-1]
        logits = (hidden @ self.embedding_VD.T).float()
        return functional.cross_entropy(
            logits.flatten(0, 1), ids_NT[:, 1:].flatten(), reduction="none"
        ).view(ids_NT.shape[0], -1)


def _frozen_layer(base: GGUFBase, layer: int, compute: torch.dtype) -> FrozenLayer:
    prefix = f"model.layers.{layer}."
    named = {
        name.removeprefix(prefix).removesuffix(".weight"): tensor.to(compute)
        for name, tensor in attention_tensors(base, layer)
    }
    gate, up, down = (
        feed_forward(base, layer, name).to(compute) for name in ("gate", "up", "down")
    )
    return FrozenLayer(named, gate, up, down)


def _norm(x: Tensor, weight_D: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight_D.float(), EPS).to(weight_D.dtype)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat((-second, first), dim=-1) * turn[1]
