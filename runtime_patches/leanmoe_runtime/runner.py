"""``LeanRunner``: ties one MoE layer's router and experts to its skip state."""

from __future__ import annotations

import re
from typing import Any

from leanmoe.messages import SkipMode
from leanmoe_runtime.compat import MoERunner, current_platform
from leanmoe_runtime.device.attach import attach
from leanmoe_runtime.experts import LeanRoutedExperts
from leanmoe_runtime.requests import watch_requests
from leanmoe_runtime.state import SKIP_STATE, LayerState

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_index(layer_name: str) -> int:
    """Decoder layer number in a module name such as ``model.layers.3.mlp.experts``; -1 if none."""
    match = _LAYER.search(layer_name)
    return int(match[1]) if match else -1


class LeanRunner(MoERunner):  # type: ignore[misc]
    """Replaces vLLM's ``MoERunner`` by class name wherever a model builds one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_state: LayerState | None = None
        experts = self.routed_experts
        if not isinstance(experts, LeanRoutedExperts):
            return  # the handshake names it
        self.skip_state = SKIP_STATE.add(
            LayerState(
                layer=layer_index(self.layer_name),
                top_k=experts.top_k,
                renormalize=experts.renormalize,
            )
        )
        if current_platform.is_cpu():
            experts.skip_state = self.skip_state
            watch_requests()
        else:
            attach(self.router, experts, self.skip_state)

    @property
    def skip_mode(self) -> SkipMode:
        """How a skipped assignment is dropped here."""
        if current_platform.is_cpu():
            return SkipMode.COMPACT
        experts = self.routed_experts
        return experts.device_mode() if isinstance(experts, LeanRoutedExperts) else SkipMode.ZERO
