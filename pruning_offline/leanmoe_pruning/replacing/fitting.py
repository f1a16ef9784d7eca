"""Stand-ins for removed experts, fitted on text layer by layer.

Each is fitted to what its expert gives in the unpruned model. T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from leanmoe.stand_ins import Part, stand_in_name, stand_in_sizes
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.forward.passes import Hidden, check_activations, chunks, embed_all, run_block
from leanmoe_pruning.forward.stand_ins import LowRank
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.replacing.regression import ExpertSums


def fit_stand_ins(
    stream: DecoderStream,
    ids: Sequence[torch.Tensor],
    gone: Mapping[int, Sequence[int]],
    rank: int,
    spool: WeightSpool,
    tick: Tick,
) -> dict[int, list[int]]:
    """Leave every stand-in's tensors in ``spool``; experts that no token reached, by layer.

    Holds the activations of all windows, one layer's weights and the sums of one expert.
    """
    hidden, last = embed_all(stream, ids), max(gone)
    idle: dict[int, list[int]] = {}
    stream.forget_embedding()
    for index in range(last + 1):
        layer = stream.layer(index)
        for chunk_NTD, _ in chunks(hidden):
            layer.attend_(chunk_NTD)
        if index in gone:
            tensors, unreached = _fit_layer(stream, layer, hidden, gone[index], rank)
            spool.put(index, tensors)
            if unreached:
                idle[index] = unreached
        if index < last:
            for chunk_NTD, _ in chunks(hidden):
                layer.add_(chunk_NTD, run_block(layer, chunk_NTD)[0])
        del layer
        tick()
    return idle


def _fit_layer(
    stream: DecoderStream, layer: DecoderLayer, hidden: Hidden, gone: Sequence[int], rank: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Tensors by name in the dtype of the router's, and the experts that no token reached."""
    family = stream.checkpoint.family
    dtype = stream.reader.info(family.gate_name(layer.index)).dtype.torch
    routed = [_routed(layer, chunk_NTD) for chunk_NTD, _ in chunks(hidden)]
    tensors: dict[str, torch.Tensor] = {}
    unreached: list[int] = []
    for expert in gone:
        sums = _sums(layer, hidden, routed, expert, rank)
        if not sums.tokens:
            unreached.append(expert)
        for part, tensor in _parts(sums.solve(), rank).items():
            tensors[stand_in_name(family, layer.index, expert, part)] = tensor.to(dtype)
    check_activations(f"layer {layer.index}", tensors.values())
    return tensors, unreached


def _routed(layer: DecoderLayer, chunk_NTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids of every token, ``[T, K]`` each."""
    routing = layer.route(layer.router_logits(layer.block_input(chunk_NTD)))
    return routing.applied(), routing.ids_TK


def _sums(
    layer: DecoderLayer,
    hidden: Hidden,
    routed: Sequence[tuple[torch.Tensor, torch.Tensor]],
    expert: int,
    rank: int,
) -> ExpertSums:
    assert layer.experts is not None, f"layer {layer.index} is dense"
    sums = ExpertSums(layer.shape.hidden_size, rank)
    for (chunk_NTD, _), (weights_TK, ids_TK) in zip(chunks(hidden), routed, strict=True):
        token, slot = (ids_TK == expert).nonzero(as_tuple=True)
        if len(token):
            x_ND = layer.block_input(chunk_NTD)[token].to(layer.experts.dtype)
            sums.add(x_ND, layer.experts.output(expert, x_ND), weights_TK[token, slot])
    return sums


def _parts(found: LowRank, rank: int) -> dict[Part, torch.Tensor]:
    parts: dict[Part, torch.Tensor] = {
        "approx_value": found.constant_D,
        "approx_in": found.into_RD,
        "approx_out": found.out_RD,
    }
    return {part: parts[part] for part in stand_in_sizes(len(found.constant_D), rank)}
