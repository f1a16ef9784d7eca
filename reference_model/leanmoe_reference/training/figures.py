"""What a trained model is worth on held-out text, against the dense parent and one adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from leanmoe_pruning.progress import Tick, no_tick
from leanmoe_reference.training.blocks import Routes, TrainableBlock
from leanmoe_reference.training.network import Block, FrozenLayer, Parent

Tensor = torch.Tensor
PER_DOMAIN = 4
ROWS = 4
SWITCHING = "switching"
HELD_OUT = ".held_out"
Losses = Mapping[str, Tensor]


def held_out(windows: Mapping[str, Tensor], count: int = PER_DOMAIN) -> dict[str, Tensor]:
    """Held-out windows by domain, and ``switching``: windows that change domain in their middle."""
    found = {
        name.removesuffix(HELD_OUT): ids[:count]
        for name, ids in sorted(windows.items())
        if name.endswith(HELD_OUT)
    }
    seen = [ids for name, ids in found.items() if f"{name}.train" in windows]
    pairs = zip(seen, [*seen[1:], *seen[:1]], strict=True)
    half = next(iter(found.values())).shape[1] // 2
    found[SWITCHING] = torch.stack([torch.cat((a[0, :half], b[-1, half:])) for a, b in pairs])
    return found


def dense_block(layer: int, x_MD: Tensor, frozen: FrozenLayer) -> Tensor:
    """The parent's own feed-forward layer."""
    return frozen.feed_forward(x_MD)


def routed(
    block: TrainableBlock, top_k: int | None = None, betas: dict[int, float] | None = None
) -> Block:
    """The block under its routers, with fewer experts where ``top_k`` or ``betas`` say so."""
    return lambda i, x, frozen: block.run(Routes(top_k=top_k, betas=betas), i, x, frozen)


@torch.no_grad()
def losses(
    parent: Parent, block: Block, windows: Mapping[str, Tensor], tick: Tick = no_tick
) -> dict[str, Tensor]:
    """Mean next-token loss of every window in nats, by domain ``[N]``."""
    found = {}
    for name, ids_NT in windows.items():
        found[name] = torch.cat(
            [parent.losses(rows, block).mean(1) for rows in torch.split(ids_NT, ROWS)]
        ).double()
        tick()
    return found


@torch.no_grad()
def median_betas(parent: Parent, block: TrainableBlock, ids_NT: Tensor) -> dict[int, float]:
    """Per layer the median of the second expert's weight relative to the first one's."""
    routes = Routes()
    parent.losses(ids_NT, lambda i, x, frozen: block.run(routes, i, x, frozen))
    return {
        layer: float((weights_MK[:, 1] / weights_MK[:, 0]).median())
        for layer, weights_MK in routes.weights_MK.items()
    }


@torch.no_grad()
def loads(parent: Parent, block: TrainableBlock, windows: Mapping[str, Tensor]) -> list[float]:
    """Share of all routed assignments each expert gets over all layers, highest first."""
    counts_E = torch.zeros(block.n_experts)
    for ids_NT in windows.values():
        routes = Routes()
        run = _recording(block, routes)
        parent.losses(ids_NT[:1], run)
        for logits_ME in routes.logits_ME.values():
            chosen = logits_ME.topk(block.top_k, dim=-1).indices.flatten()
            counts_E += torch.bincount(chosen, minlength=block.n_experts)
    return [
        round(float(one), 4) for one in (counts_E / counts_E.sum()).sort(descending=True).values
    ]


def _recording(block: TrainableBlock, routes: Routes) -> Block:
    return lambda i, x, frozen: block.run(routes, i, x, frozen)


def perplexities(found: Losses) -> dict[str, float]:
    """Perplexity by domain: the exponential of the mean loss."""
    return {name: round(math.exp(float(one_N.mean())), 3) for name, one_N in found.items()}


@dataclass(frozen=True)
class Change:
    """How far the geometric mean of the perplexities is from another's, in per cent."""

    percent: float
    standard_error: float

    @staticmethod
    def of(found: Losses, other: Losses, names: Iterable[str]) -> Change:
        """Paired by window, every domain in ``names`` weighing the same."""
        pairs = [found[name] - other[name] for name in sorted(names)]
        mean = float(torch.stack([one_N.mean() for one_N in pairs]).mean())
        spread = math.sqrt(sum(float(_variance(one_N)) for one_N in pairs)) / len(pairs)
        factor = math.exp(mean)
        return Change(round(100 * (factor - 1), 2), round(100 * factor * spread, 2))


def _variance(one_N: Tensor) -> Tensor:
    return one_N.var() / len(one_N) if len(one_N) > 1 else one_N.new_zeros(())
