"""A model run one decoder layer at a time.

Only one layer's weights are in memory; the caller holds the activations of all
windows. What families differ in is in ``families``. The residual stream, norms,
router and every statistic are float32; matrix products run in ``compute``:
float32 for a float32 or float64 checkpoint and on processors that multiply no bfloat16, otherwise
bfloat16 unless told, which is three times faster and adds some 0.0003 nats to every divergence on
the reference model.
N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from leanmoe.errors import CheckpointError, DataError
from leanmoe.families import MoEShape
from leanmoe.families.names import HEAD, HEAD_BIAS
from leanmoe.layout import LEAST_PROBABILITY, LayerLayout, transfer_name
from leanmoe_pruning.checkpoints.fp8 import block_of
from leanmoe_pruning.checkpoints.opening import OpenedModel, check_runnable
from leanmoe_pruning.forward.attention import Attention
from leanmoe_pruning.forward.experts import Experts, FeedForward
from leanmoe_pruning.forward.families import forward_family
from leanmoe_pruning.forward.families.base import Parts
from leanmoe_pruning.forward.placing import Placing
from leanmoe_pruning.forward.routing import RouterRule, Routing, route
from leanmoe_pruning.forward.stand_ins import experts_with_stand_ins
from leanmoe_pruning.forward.weights import Weights
from leanmoe_pruning.precision import default_precision


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer with its weights loaded: attention, then a dense or a MoE block."""

    index: int
    attention: Attention
    input_norm: Any
    post_attention_norm: Any
    # What every token passes: a MoE block's shared expert, or the whole of a dense block.
    always: FeedForward | None
    # None in a dense layer and in one left with its shared expert, whose gate is None too.
    experts: Experts | None
    gate_ED: torch.Tensor | None
    # This layer's own numbers of experts and top-k.
    shape: MoEShape
    gate_bias_E: torch.Tensor | None = None
    correction_E: torch.Tensor | None = None
    condensed: bool = False
    # Maps the probabilities of the gate's rows to the experts, float32 [E, rows] (EEP).
    transfer: torch.Tensor | None = None
    # What attention and block outputs are multiplied by.
    residual_scale: float = 1.0

    @property
    def skips(self) -> bool:
        """Whether its tokens choose among experts, so that some can be skipped."""
        return self.experts is not None and not self.condensed

    def attend_(self, hidden_NTD: torch.Tensor, placing: Placing | None = None) -> None:
        """Add attention to the residual stream in place; all windows in order unless placed."""
        normed_NTD = self.input_norm(hidden_NTD)
        if placing is None:
            mixed_NTD = self.attention(normed_NTD)
        else:
            mixed_NTD = self.attention.placed(normed_NTD, placing)
        hidden_NTD.add_(mixed_NTD, alpha=self.residual_scale)

    def block_input(self, hidden_NTD: torch.Tensor) -> torch.Tensor:
        """What gate and experts see, float32 ``[T, D]`` with all windows' tokens in order."""
        normed: torch.Tensor = self.post_attention_norm(hidden_NTD)
        return normed.flatten(0, 1)

    @cached_property
    def rule(self) -> RouterRule:
        """How this layer routes; a condensed one to all its experts, in one group."""
        shape = replace(self.shape, n_groups=1, top_groups=1) if self.condensed else self.shape
        rule = RouterRule.of(shape, self.correction_E)
        return rule if self.transfer is None else replace(rule, scoring="mapped")

    def route(self, logits_TE: torch.Tensor, kept: Sequence[int] | None = None) -> Routing:
        """Route tokens among the ``kept`` experts (all where ``None``)."""
        return route(logits_TE, self.rule, kept)

    def router_logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, E]``; through a transfer, logarithms of the mapped probabilities."""
        assert self.gate_ED is not None, f"layer {self.index} is dense"
        logits_TE = functional.linear(x_TD, self.gate_ED, self.gate_bias_E)
        if self.transfer is None:
            return logits_TE
        mapped_TE = functional.linear(logits_TE.softmax(-1), self.transfer)
        return mapped_TE.clamp_min(LEAST_PROBABILITY).log()

    def shared(self, x_TD: torch.Tensor) -> torch.Tensor | None:
        """What every token gets whatever the router says, float32 ``[T, D]``, or ``None``."""
        return None if self.always is None else self.always.output(x_TD)

    def add_(self, chunk_NTD: torch.Tensor, output_TD: torch.Tensor) -> None:
        """Add a block's output to the residual stream in place."""
        chunk_NTD.add_(output_TD.view_as(chunk_NTD), alpha=self.residual_scale)


class DecoderStream:
    """The layers of one checkpoint in order, its embedding and its head."""

    def __init__(self, checkpoint: OpenedModel, compute: str | None = None) -> None:
        check_runnable(checkpoint)
        self.checkpoint = checkpoint
        self.reader = checkpoint.reader
        self.shape: MoEShape = checkpoint.shape
        self._forward = forward_family(checkpoint.family.name)
        parts = self._from_transformers()
        self.config, self._rotary = parts.config, parts.rotary
        self._scales, self._windows = parts.scales, parts.windows
        self.compute: torch.dtype = getattr(torch, compute or self._default_precision())
        self.weights = Weights(self.reader, self.compute, block_of(checkpoint))

    def _from_transformers(self) -> Parts:
        try:
            return self._forward.parts(self.checkpoint.config, self.n_layers)
        except Exception as error:  # its checks raise errors of many kinds
            lines = str(error).strip().splitlines() or [""]
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            said = f"{kind}{lines[-1].strip()}"
            raise CheckpointError(
                f"transformers cannot use {self.checkpoint.path / 'config.json'} ({said}); "
                "take the config of the original model"
            ) from None

    def _default_precision(self) -> str:
        stored = self.reader.info(self.checkpoint.family.gate_name(self.shape.moe_layers[0])).dtype
        return default_precision(stored.itemsize)

    @property
    def n_layers(self) -> int:
        return self.shape.n_layers

    def embed(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """float32 ``[N, T, D]``; raises ``DataError`` for ids that the model has no row for."""
        self._check_ids(ids_NT)
        hidden_NTD = functional.embedding(ids_NT, self._embedding).float()
        scale = self._scales.embedding
        return hidden_NTD if scale == 1.0 else hidden_NTD * scale

    def _check_ids(self, ids_NT: torch.Tensor) -> None:
        """What a prompt, a task or config.json brings was not looked at before."""
        known = len(self._embedding)
        wrong = ids_NT[(ids_NT < 0) | (ids_NT >= known)]
        if len(wrong):
            raise DataError(
                f"token id {int(wrong[0])} is outside the vocabulary of {self.checkpoint.path}, "
                f"which has {known}: its tokenizer, or a token id in its config.json, is another "
                "model's; take the files of the original model"
            )

    def forget_embedding(self) -> None:
        """Let the embedding's memory go; it is read again when it is needed again."""
        self.__dict__.pop("_embedding", None)

    @cached_property
    def _embedding(self) -> torch.Tensor:
        size = (self.config.vocab_size, self.shape.hidden_size)
        return self.weights.stored("model.embed_tokens.weight", size)

    def layers(self, first: int = 0) -> Iterator[DecoderLayer]:
        """Every decoder layer from ``first``, loaded when reached and let go when passed."""
        for index in range(first, self.n_layers):
            yield self.layer(index)

    def layer(self, index: int) -> DecoderLayer:
        """One decoder layer, loaded now; a caller short of memory lets the last one go first."""
        own = self.checkpoint.layers.get(index)
        dense = DecoderLayer(
            index=index,
            attention=self._attention(index),
            input_norm=self._norm(f"model.layers.{index}.input_layernorm"),
            post_attention_norm=self._norm(f"model.layers.{index}.post_attention_layernorm"),
            always=None,
            experts=None,
            gate_ED=None,
            shape=self.shape,
            residual_scale=self._scales.residual,
        )
        prefix = self.checkpoint.family.block_prefix(index)
        if own is None:
            return replace(dense, always=self.weights.feed_forward(prefix))
        return self._with_experts(dense, prefix, own)

    def _with_experts(self, layer: DecoderLayer, prefix: str, own: LayerLayout) -> DecoderLayer:
        if not own.n_experts:
            return replace(layer, always=self._shared(prefix), condensed=True)
        family, weights = self.checkpoint.family, self.weights
        shape = replace(self.shape, n_routed_experts=own.n_experts, top_k=own.top_k)
        transfer = None
        if own.gate_rows is not None:
            transfer = weights.exact(transfer_name(prefix))
        return replace(
            layer,
            always=self._shared(prefix),
            experts=self._experts(layer.index, shape, own),
            gate_ED=weights.exact(family.gate_name(layer.index)),
            gate_bias_E=self._part(prefix, family.parts.gate_bias),
            correction_E=self._part(prefix, family.parts.correction),
            shape=shape,
            condensed=own.condensed,
            transfer=transfer,
        )

    def _experts(self, layer: int, shape: MoEShape, own: LayerLayout) -> Experts:
        family = self.checkpoint.family
        if own.stand_ins is None:
            return self._forward.experts(self.weights, family, layer, shape)
        return experts_with_stand_ins(self.weights, family, layer, shape, own)

    def _part(self, prefix: str, name: str | None) -> torch.Tensor | None:
        return None if name is None else self.weights.exact(f"{prefix}.{name}")

    def _shared(self, prefix: str) -> FeedForward | None:
        parts = self.checkpoint.family.parts
        shared = f"{prefix}.{parts.shared_expert}"
        # The config may say that there is none; what is missing was found before.
        if f"{shared}.down_proj.weight" not in self.reader:
            return None
        return self.weights.feed_forward(shared, self._part(prefix, parts.shared_gate))

    def _attention(self, index: int) -> Attention:
        return Attention(
            module=self._forward.make_attention(self.weights, self.config, index),
            rotary=self._rotary,
            window=self._windows[index],
            compute=self.compute,
            needs_mask=self._forward.attention == "eager",
        )

    def _norm(self, name: str) -> Any:
        return self._forward.make_norm(self.weights, self.config, name)

    @cached_property
    def _final_norm(self) -> Any:
        return self._norm("model.norm")

    @cached_property
    def _head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Where a config ties them and the files hold a head of its own, vLLM takes that one.
        if HEAD not in self.reader:
            return self._embedding.float(), None
        size = (self.config.vocab_size, self.shape.hidden_size)
        return self.weights.exact(HEAD, size), self.weights.optional(HEAD_BIAS, size[:1])

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """float32 ``[T, V]`` of final hidden states; call it in chunks."""
        logits_TV = functional.linear(self.final_norm(hidden_TD), *self._head)
        return logits_TV if self._scales.logits == 1.0 else logits_TV * self._scales.logits

    def final_norm(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """What the head sees."""
        normed: torch.Tensor = self._final_norm(hidden_TD)
        return normed

    def log_probabilities(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """log softmax of the logits, float32 ``[T, V]``."""
        return self.logits(hidden_TD).log_softmax(-1)
