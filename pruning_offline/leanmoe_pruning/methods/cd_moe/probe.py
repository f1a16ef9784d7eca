"""Logits of a model whose layers are condensed in memory, for ``--dump``.

N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.cd_moe.condensed import Condensed, pass_
from leanmoe_pruning.methods.cd_moe.memory import Layers


def probe_logits(
    stream: DecoderStream,
    layers: Layers,
    ids_NT: torch.Tensor,
    condensed: Mapping[int, Condensed],
) -> torch.Tensor:
    """float32 ``[N, T, V]``."""
    hidden_NTD = stream.embed(ids_NT)
    for layer in layers.following():
        pass_(layer, hidden_NTD, condensed.get(layer.index))
    return stream.logits(hidden_NTD.flatten(0, 1)).view(*ids_NT.shape, -1)


def growing(
    order: Sequence[int], wanted: Mapping[int, Condensed]
) -> dict[int, dict[int, Condensed]]:
    """The first n layers of an order condensed, for n from 1 on."""
    return {n: {layer: wanted[layer] for layer in order[:n]} for n in range(1, len(order) + 1)}
