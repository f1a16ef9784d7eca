"""Whether the routing kernel gives stock's weights and experts to the bit, tried where it runs.

The kernel spells out stock's order of operations, but a compiler or a library may round
otherwise on another card or under another version. Level 0 must be stock's to the bit, so each
kind of router is tried once, at the first run after loading, on the device it will run on. A kind
that fails keeps its own launches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from leanmoe_runtime.device.routing import Routing

_LOG = logging.getLogger(__name__)
# Sizes on both sides of the kernel's choices, among them those that lay out blocks.
SIZES = (1, 2, 3, 8, 64, 257)
_SPREADS = (0.1, 1.0, 4.0)
_FOUND: dict[tuple[Any, ...], bool] = {}

Chosen = tuple[torch.Tensor, torch.Tensor]


def is_exact(
    routing: Routing,
    route: Callable[[torch.Tensor], Chosen],
    stock: Callable[[torch.Tensor], Chosen],
    like: torch.Tensor,
) -> bool:
    """Whether both give the same on random logits; the answer is kept per kind of router.

    ``like`` has the type and the device of real logits.
    """
    key = (routing.key, like.dtype, like.device.type)
    if key not in _FOUND:
        trials = _trials(routing, like.dtype, like.device)
        _FOUND[key] = all(_same(route(logits), stock(logits)) for logits in trials)
        _say(routing, _FOUND[key])
    return _FOUND[key]


def _trials(routing: Routing, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    random = torch.Generator(device).manual_seed(0)
    return [
        spread * torch.randn(size, routing.n_experts, generator=random, device=device, dtype=dtype)
        for size in SIZES
        for spread in _SPREADS
    ]


def _same(found: Chosen, expected: Chosen) -> bool:
    return torch.equal(found[0], expected[0]) and torch.equal(found[1].long(), expected[1].long())


def _say(routing: Routing, exact: bool) -> None:
    how = "its own launch" if exact else "a launch behind it: the routing kernel rounds otherwise"
    _LOG.warning("top-%d of %d experts is decided in %s", routing.top_k, routing.n_experts, how)
