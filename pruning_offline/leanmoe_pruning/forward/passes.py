"""Windows of several sources carried through the layers of a stream.

Sources may differ in window length, so activations are one tensor per source,
``[N, T, D]``. A layer changes them in place, a few windows at a time, so that
what it works on stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from leanmoe.errors import CheckpointError
from leanmoe_pruning.checkpoints.shards import is_finite
from leanmoe_pruning.forward.experts import OutputNorms
from leanmoe_pruning.forward.placing import Placing
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream

CHUNK_TOKENS = 4096
Hidden = list[torch.Tensor]


@dataclass(frozen=True)
class Routed:
    """What a layer's router decided for every token, and what survived skipping."""

    routing: Routing
    keep_TK: torch.Tensor


def embed_all(stream: DecoderStream, ids: Sequence[torch.Tensor]) -> Hidden:
    """Embedding of every source."""
    return [stream.embed(ids_NT) for ids_NT in ids]


def chunks(hidden: Hidden, most_tokens: int = CHUNK_TOKENS) -> Iterator[tuple[torch.Tensor, slice]]:
    """Views of a few whole windows each, with the rows their tokens have among all tokens."""
    start = 0
    for part in hidden:
        for chunk_NTD in torch.split(part, max(1, most_tokens // part.shape[1])):
            end = start + chunk_NTD.shape[0] * chunk_NTD.shape[1]
            yield chunk_NTD, slice(start, end)
            start = end


def check_activations(where: str, found: Iterable[torch.Tensor]) -> None:
    """Raise unless all that a layer gave is finite; ``where`` names the layer."""
    if not all(map(is_finite, found)):
        raise CheckpointError(
            f"the activations of {where} are not finite, so nothing can be decided from them: the "
            "weights overflow; try --compute float32 or fetch the model again"
        )


def run_block(
    layer: DecoderLayer,
    chunk_NTD: torch.Tensor,
    kept: Sequence[int] | None = None,
    betas_T: torch.Tensor | None = None,
    factors_E: torch.Tensor | None = None,
    norms: OutputNorms | None = None,
) -> tuple[torch.Tensor, Routed | None]:
    """Block output ``[T, D]``, the shared expert's part in it, all but ``kept`` experts masked.

    Skips by ``betas_T``, with ``factors_E`` under the norm rule. A dense block routes nothing.
    """
    x_TD = layer.block_input(chunk_NTD)
    shared_TD = layer.shared(x_TD)
    if layer.experts is None:
        return torch.zeros_like(x_TD) if shared_TD is None else shared_TD, None
    routing = layer.route(layer.router_logits(x_TD), kept)
    keep_TK = routing.kept(0.0 if betas_T is None else betas_T, factors_E)
    weights_TK = routing.applied(keep_TK)
    output_TD = layer.experts.routed(x_TD, weights_TK, routing.ids_TK, keep_TK, norms)
    if shared_TD is not None:
        output_TD += shared_TD
    return output_TD, Routed(routing, keep_TK)


def step_(
    layer: DecoderLayer,
    hidden: Hidden,
    kept: Sequence[int] | None = None,
    betas_T: torch.Tensor | None = None,
    placing: Placing | None = None,
    factors_E: torch.Tensor | None = None,
    norms: OutputNorms | None = None,
) -> Routed | None:
    """One whole decoder layer, in place; what a MoE layer's router decided.

    Tokens that are placed must fit one chunk. ``norms`` take down the experts' outputs.
    """
    found = []
    for chunk_NTD, rows in chunks(hidden):
        layer.attend_(chunk_NTD, placing)
        betas = None if betas_T is None else betas_T[rows]
        output_TD, routed = run_block(layer, chunk_NTD, kept, betas, factors_E, norms)
        layer.add_(chunk_NTD, output_TD)
        if routed is not None:
            found.append(routed)
    return _joined(found) if found else None


def _joined(found: Sequence[Routed]) -> Routed:
    routing = replace(
        found[0].routing,
        weights_TK=torch.cat([part.routing.weights_TK for part in found]),
        ids_TK=torch.cat([part.routing.ids_TK for part in found]),
    )
    return Routed(routing, torch.cat([part.keep_TK for part in found]))
