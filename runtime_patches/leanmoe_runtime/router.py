"""Skipping decided in the router, for devices where Python does not run at every step.

``_compute_routing`` is replaced on the router *instance*, before expert-parallel
load balancing maps ids, so that its statistics see what is computed. The
decision (device/) uses persistent device tensors only: a captured graph follows a
level that changes, and level 0 keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from leanmoe_runtime.compat import BaseRouter

Routing = tuple[torch.Tensor, torch.Tensor]


def wrap_router(
    router: BaseRouter, decide: Callable[[torch.Tensor, torch.Tensor], Routing]
) -> None:
    """Pass what ``router`` chooses, weights [T, K] and ids [T, K], through ``decide``."""
    stock = router._compute_routing

    def compute_routing(
        hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Routing:
        return decide(*stock(hidden_states, router_logits, *args, **kwargs))

    compute_routing.decide = decide  # type: ignore[attr-defined]
    router._compute_routing = compute_routing
