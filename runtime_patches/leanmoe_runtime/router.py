"""Skipping decided in the router, for devices where Python does not run at every step.

``_compute_routing`` is replaced on the router *instance*, before expert-parallel load balancing
maps ids, so that its statistics see what is computed. The decision (device/) uses persistent
device tensors only: a captured graph follows a level that changes, and level 0 keeps everything.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from leanmoe_runtime.compat import BaseRouter, no_padding
from leanmoe_runtime.device.layer import Chosen, Stock, StockOf


class Decision(Protocol):
    """What stands in for a router's own routing (``device.layer.DeviceLayer``)."""

    def __call__(
        self, stock: Stock, logits_TE: torch.Tensor, ids: torch.dtype | None, stock_of: StockOf
    ) -> Chosen: ...


def wrap_router(router: BaseRouter, decide: Decision) -> None:
    """Let ``decide`` answer for ``router``; it is given the stock routing to call or replace."""
    stock = router._compute_routing

    def compute_routing(
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None = None,
        **named: Any,
    ) -> Chosen:
        def this_step() -> Chosen:
            chosen: Chosen = stock(hidden_states, router_logits, indices_type, **named)
            return chosen

        def stock_of(logits_TE: torch.Tensor) -> Chosen:
            # Routers look at the hidden states' number alone, but one that is compiled from tensor
            # operations would be compiled anew for another width.
            hidden_TD = hidden_states.new_empty(len(logits_TE), *hidden_states.shape[1:])
            with no_padding():
                chosen: Chosen = stock(hidden_TD, logits_TE, None)
            return chosen

        return decide(this_step, router_logits, indices_type, stock_of)

    compute_routing.decide = decide  # type: ignore[attr-defined]
    router._compute_routing = compute_routing
