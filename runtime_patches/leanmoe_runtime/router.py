"""Skipping decided in the router, for devices where Python does not run at every step.

``_compute_routing`` is replaced on the router *instance*, before expert-parallel
load balancing maps ids, so that its statistics see the router's true choice. The
wrapped function uses persistent device tensors only: a captured graph follows a
level that changes, and level 0 keeps everything.
"""

from __future__ import annotations

from typing import Any

import torch

from leanmoe_runtime.compat import BaseRouter
from leanmoe_runtime.rule import mask_on_device
from leanmoe_runtime.state import LayerState


def wrap_router(router: BaseRouter, state: LayerState) -> None:
    """Make ``router`` give skipped assignments weight zero (mode *zero*) and count them."""
    stock = router._compute_routing

    def compute_routing(
        hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights_TK, ids_TK = stock(hidden_states, router_logits, *args, **kwargs)
        state.calls += 1
        _to_device(state, weights_TK.device)
        kept_TK, keep_TK = mask_on_device(weights_TK, state.beta_tensor, state.renormalize)
        state.device_counts[0] += len(weights_TK)
        state.device_counts[1] += (~keep_TK).sum()
        return kept_TK.to(weights_TK.dtype), ids_TK

    router._compute_routing = compute_routing


def _to_device(state: LayerState, device: torch.device) -> None:
    if state.beta_tensor.device != device:
        state.beta_tensor = state.beta_tensor.to(device)
        state.device_counts = state.device_counts.to(device)
