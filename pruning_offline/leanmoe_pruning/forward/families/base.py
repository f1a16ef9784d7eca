"""What every family must say about its forward pass, and what most have in common.

Attention, norms and rotary embedding are transformers' own classes; the MoE block is ours
because a method needs what happens inside. D model, F expert hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe.families import Family, MoEShape
from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.weights import Weights

# Keys that say nothing of layers. Of a count of labels transformers makes as many names.
_LEFT_OUT = (
    *("architectures", "model_type", "auto_map", "quantization_config"),
    *("num_labels", "id2label", "label2id"),
)


@dataclass(frozen=True)
class Scales:
    """What a family multiplies its streams by."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


def no_scales(config: Any) -> Scales:
    """For families that multiply nothing."""
    return Scales()


def whole_past(config: Any, layer: int) -> int | None:
    """For families whose tokens see all before them."""
    return None


def one_window(config: Any, layer: int) -> int | None:
    """For families with one sliding window, or none, for all layers."""
    window: int | None = config.sliding_window
    return window


def window_by_type(config: Any, layer: int) -> int | None:
    """For families whose config says of each layer whether it slides."""
    sliding = config.layer_types[layer] == "sliding_attention"
    return one_window(config, layer) if sliding else None


def separate_experts(
    weights: Weights,
    family: Family,
    layer: int,
    shape: MoEShape,
    absent: Collection[int] = (),
) -> Experts:
    """Experts with a tensor each per projection; ``absent`` ones get weights of no channel."""
    narrow = shape.hidden_size

    def read(expert: int, projection: Projection) -> torch.Tensor:
        wide = 0 if expert in absent else shape.expert_ffn_size
        size = (narrow, wide) if projection == "down_proj" else (wide, narrow)
        if expert in absent:
            return torch.empty(size, dtype=weights.compute)
        return weights.product(family.expert_name(layer, expert, projection), size)

    experts = range(shape.n_routed_experts)
    return Experts(*([read(e, projection) for e in experts] for projection in PROJECTIONS))


@dataclass(frozen=True)
class Parts:
    """What a ``config.json`` says of a forward pass, before any weight is read."""

    config: Any
    rotary: Any
    scales: Scales
    # How far back the tokens of each layer see.
    windows: tuple[int | None, ...]


def _check_rope_type(config: Any) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found = (config.rope_parameters or {}).get("rope_type", "default")
    known = ("default", *ROPE_INIT_FUNCTIONS)
    if found not in known:
        raise ValueError(f"rope_type is {found!r}, expected one of {', '.join(known)}")


def _turned(rotary: Any) -> Any:
    """What turns two tokens, without its numbers; raises where these are none."""
    found = rotary(torch.zeros(1, 2, 1), position_ids=torch.arange(2)[None])
    parts = [found] if isinstance(found, torch.Tensor) else list(found)
    for part in parts:
        if not torch.isfinite(torch.view_as_real(part) if part.is_complex() else part).all():
            raise ValueError("its rotary embedding turns tokens by what is no number")
    bare = tuple(part.to("meta") for part in parts)
    return bare[0] if isinstance(found, torch.Tensor) else bare


def _whole_number(window: Any) -> int | None:
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"sliding_window is {window!r}, expected a number of tokens")
    return window


@dataclass(frozen=True)
class ForwardFamily:
    """One family. ``config_class``, ``attention_class`` and ``rotary_class`` are transformers'."""

    config_class: Any
    attention_class: Any
    rotary_class: Any
    # Made of its width and epsilon.
    norm_class: Any
    # How far back a layer's tokens see, themselves counted.
    window: Callable[[Any, int], int | None] = whole_past
    scales: Callable[[Any], Scales] = no_scales
    experts: Callable[[Weights, Family, int, MoEShape], Experts] = separate_experts
    # "eager" where the attention needs what PyTorch's kernel lacks.
    attention: str = "sdpa"

    def make_config(self, values: dict[str, Any]) -> Any:
        """transformers' view of a ``config.json``."""
        named = {key: value for key, value in values.items() if key not in _LEFT_OUT}
        config = self.config_class(**named)
        config._attn_implementation = self.attention
        return config

    def parts(self, values: dict[str, Any], n_layers: int) -> Parts:
        """Everything but weights, tried once; raises what transformers raises, of any kind."""
        config = self.make_config(values)
        _check_rope_type(config)
        rotary = self.rotary_class(config)
        self._try(config, _turned(rotary))
        windows = tuple(_whole_number(self.window(config, layer)) for layer in range(n_layers))
        return Parts(config, rotary, self.scales(config), windows)

    def _try(self, config: Any, turned: Any) -> None:
        """Attention and norm on two tokens of no content: shapes that do not fit stop here."""
        with torch.device("meta"):
            norm = self.norm_class(config.hidden_size, eps=float(config.rms_norm_eps))
            attention = self.attention_class(config, 0).eval()
            attention(
                hidden_states=norm(torch.empty(1, 2, config.hidden_size)),
                position_embeddings=turned,
                attention_mask=None,
                past_key_values=None,
            )

    def make_attention(self, weights: Weights, config: Any, layer: int) -> Any:
        """One layer's attention with its weights."""
        with torch.device("meta"):
            module = self.attention_class(config, layer).eval()
        return weights.fill(module, f"model.layers.{layer}.self_attn")

    def make_norm(self, weights: Weights, config: Any, name: str) -> Any:
        """The norm whose tensors have names that begin so."""
        with torch.device("meta"):
            module = self.norm_class(config.hidden_size, eps=config.rms_norm_eps).eval()
        return weights.fill(module, name)
