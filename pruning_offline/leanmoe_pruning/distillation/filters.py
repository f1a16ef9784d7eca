"""Which tensors are trained, by decoder layer. Norms, embedding and head never are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from leanmoe.checkpoint import Checkpoint

# Names of the tensors to train in a decoder layer.
Filter = Callable[[Checkpoint, int], list[str]]

_LINEAR = re.compile(r"_proj(_with_mqa)?\.weight$")


def experts(checkpoint: Checkpoint, layer: int) -> list[str]:
    """The routed experts' matrices."""
    if layer not in checkpoint.layers or not checkpoint.layers[layer].n_experts:
        return []
    family, own = checkpoint.family, checkpoint.layers[layer]
    shape = replace(checkpoint.shape, n_routed_experts=own.n_experts)
    sizes = family.block_sizes(shape, layer)
    if family.stacked:
        return [name for name, size in sizes.items() if len(size) == 3]
    return [name for name in sizes if family.parse_expert(name) is not None]


def routers(checkpoint: Checkpoint, layer: int) -> list[str]:
    """The router's rows, where tokens choose among experts."""
    own = checkpoint.layers.get(layer)
    if own is None or not own.n_experts or own.condensed:
        return []
    return [checkpoint.family.gate_name(layer)]


def condensed(checkpoint: Checkpoint, layer: int) -> list[str]:
    """Shared and selected experts' matrices in layers without a router (CD-MoE)."""
    if layer not in checkpoint.layers or not checkpoint.layers[layer].condensed:
        return []
    block = f"{checkpoint.family.block_prefix(layer)}."
    shared = [name for name in _linear(checkpoint, layer) if name.startswith(block)]
    return [*experts(checkpoint, layer), *shared]


def everything(checkpoint: Checkpoint, layer: int) -> list[str]:
    """Every linear layer's matrix: attention, dense and shared feed-forward, routed experts."""
    return [*experts(checkpoint, layer), *_linear(checkpoint, layer)]


def _linear(checkpoint: Checkpoint, layer: int) -> list[str]:
    names = checkpoint.family.other_names(checkpoint.config)
    return [
        name for name in names if checkpoint.family.layer_of(name) == layer and _LINEAR.search(name)
    ]


ROUTERS = "routers"
FILTERS: dict[str, Filter] = {
    "experts": experts,
    ROUTERS: routers,
    "condensed": condensed,
    "all": everything,
}
