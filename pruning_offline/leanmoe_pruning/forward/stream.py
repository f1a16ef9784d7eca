"""A Mixtral-family model run one decoder layer at a time.

Only one layer's weights are in memory; the caller holds the activations of all
windows. Attention, norms and rotary embedding are transformers' own classes, the
MoE block is ours because a method needs what happens inside. The residual stream,
norms, router and every statistic are float32; matrix products run in ``compute``:
float32 for a float32 or float64 checkpoint, otherwise bfloat16 unless told, which is three
times faster and adds some 0.0003 nats to every divergence on the reference model.
N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families import MoEShape
from leanmoe.families.base import PROJECTIONS
from leanmoe.layout import LEAST_PROBABILITY, transfer_name
from leanmoe_pruning.checkpoints.opening import check_complete, check_runnable
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import RouterRule, Routing, route

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer with its weights loaded."""

    index: int
    attention: Any
    input_norm: Any
    post_attention_norm: Any
    rotary: Any
    sliding_window: int | None
    gate_ED: torch.Tensor
    experts: Experts
    # This layer's own numbers of experts and top-k.
    shape: MoEShape
    condensed: bool = False
    # Maps the probabilities of the gate's rows to the experts, float32 [E, rows] (EEP).
    transfer: torch.Tensor | None = None

    def attend_(self, hidden_NTD: torch.Tensor) -> None:
        """Add attention to the residual stream in place."""
        length = hidden_NTD.shape[1]
        rotary = self.rotary(hidden_NTD, position_ids=torch.arange(length)[None])
        reduced = self.experts.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            mixed_NTD, _ = self.attention(
                hidden_states=self.input_norm(hidden_NTD),
                position_embeddings=rotary,
                attention_mask=self._mask(length),
            )
        hidden_NTD += mixed_NTD

    def _mask(self, length: int) -> torch.Tensor | None:
        if self.sliding_window is None or length <= self.sliding_window:
            return None
        ones = torch.ones(length, length, dtype=torch.bool)
        seen = ones.tril() & ones.triu(1 - self.sliding_window)
        return torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]

    def block_input(self, hidden_NTD: torch.Tensor) -> torch.Tensor:
        """What gate and experts see, float32 ``[T, D]`` with all windows' tokens in order."""
        normed: torch.Tensor = self.post_attention_norm(hidden_NTD)
        return normed.flatten(0, 1)

    @property
    def rule(self) -> RouterRule:
        return RouterRule.of(self.shape)

    def route(self, logits_TE: torch.Tensor, kept: Sequence[int] | None = None) -> Routing:
        """Route tokens among the ``kept`` experts (all where ``None``)."""
        return route(logits_TE, self.rule, kept)

    def router_logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, E]``; through a transfer, logarithms of the mapped probabilities."""
        logits_TE = functional.linear(x_TD, self.gate_ED)
        if self.transfer is None:
            return logits_TE
        mapped_TE = functional.linear(logits_TE.softmax(-1), self.transfer)
        return mapped_TE.clamp_min(LEAST_PROBABILITY).log()


class DecoderStream:
    """The layers of one checkpoint in order, its embedding and its head."""

    def __init__(self, checkpoint: Checkpoint, compute: str | None = None) -> None:
        check_runnable(checkpoint)
        self.checkpoint = checkpoint
        self.reader = ShardReader(checkpoint.path)
        self.shape: MoEShape = checkpoint.shape
        self._modules: Any = import_module("leanmoe_pruning.forward.modules")
        check_complete(checkpoint, self.reader)
        self.config: Any = self._transformers_config()
        self._rotary = self._modules.make_rotary(self.config)
        self.compute = COMPUTE_DTYPES[compute] if compute else self._own_dtype()

    def _transformers_config(self) -> Any:
        try:
            return self._modules.make_config(self.checkpoint.config)
        except Exception as error:  # its checks raise errors of many kinds
            line = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"transformers cannot use {self.checkpoint.path / 'config.json'} ({line.strip()}); "
                "take the config of the original model"
            ) from None

    def _own_dtype(self) -> torch.dtype:
        stored = self.reader.info(self.checkpoint.family.gate_name(self.shape.moe_layers[0])).dtype
        return torch.float32 if stored.itemsize >= torch.float32.itemsize else torch.bfloat16

    @property
    def n_layers(self) -> int:
        return self.shape.n_layers

    def embed(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """float32 ``[N, T, D]``."""
        return functional.embedding(ids_NT, self._embedding).float()

    def forget_embedding(self) -> None:
        """Let the embedding's memory go; it is read again when it is needed again."""
        self.__dict__.pop("_embedding", None)

    @cached_property
    def _embedding(self) -> torch.Tensor:
        size = (self.config.vocab_size, self.shape.hidden_size)
        return self.reader.read("model.embed_tokens.weight", size)

    def layers(self) -> Iterator[DecoderLayer]:
        """Every decoder layer, loaded when reached and let go when passed."""
        for index in range(self.n_layers):
            yield self.layer(index)

    def layer(self, index: int) -> DecoderLayer:
        """One decoder layer, loaded now; a caller short of memory lets the last one go first."""
        prefix, family = f"model.layers.{index}", self.checkpoint.family
        own = self.checkpoint.layers[index]
        shape = replace(self.shape, n_routed_experts=own.n_experts, top_k=own.top_k)
        transfer = None
        if own.gate_rows is not None:
            transfer = self.reader.read(transfer_name(family.block_prefix(index))).float()
        return DecoderLayer(
            index=index,
            attention=self._attention(index),
            input_norm=self._norm(f"{prefix}.input_layernorm.weight"),
            post_attention_norm=self._norm(f"{prefix}.post_attention_layernorm.weight"),
            rotary=self._rotary,
            sliding_window=self.config.sliding_window,
            gate_ED=self.reader.read(family.gate_name(index)).float(),
            experts=self._experts(index, shape),
            shape=shape,
            condensed=own.condensed,
            transfer=transfer,
        )

    def _experts(self, layer: int, shape: MoEShape) -> Experts:
        name = self.checkpoint.family.expert_name
        wide, narrow = shape.expert_ffn_size, shape.hidden_size
        weights = [
            [
                self._product_weight(
                    name(layer, expert, projection),
                    (narrow, wide) if projection == "down_proj" else (wide, narrow),
                )
                for expert in range(shape.n_routed_experts)
            ]
            for projection in PROJECTIONS
        ]
        return Experts(*weights)

    def _product_weight(self, name: str, size: tuple[int, ...] | None = None) -> torch.Tensor:
        return self.reader.read(name, size).to(self.compute)

    def _attention(self, index: int) -> Any:
        module = self._modules.empty_attention(self.config, index)
        weights = {
            name: self._product_weight(f"model.layers.{index}.self_attn.{name}", tuple(meta.shape))
            for name, meta in module.state_dict().items()
        }
        module.load_state_dict(weights, assign=True)
        return module

    def _norm(self, name: str) -> Any:
        weight = self.reader.read(name, (self.shape.hidden_size,)).float()
        return self._modules.make_norm(self.config, weight)

    @cached_property
    def _final_norm(self) -> Any:
        return self._norm("model.norm.weight")

    @cached_property
    def _head(self) -> torch.Tensor:
        if self.config.tie_word_embeddings:
            return self._embedding.float()
        size = (self.config.vocab_size, self.shape.hidden_size)
        return self.reader.read("lm_head.weight", size).float()

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, V]`` of final hidden states; call it in chunks."""
        return functional.linear(self._final_norm(hidden_TD), self._head)

    def log_probabilities(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """log softmax of the logits, float32 ``[T, V]``."""
        return self.logits(hidden_TD).log_softmax(-1)
