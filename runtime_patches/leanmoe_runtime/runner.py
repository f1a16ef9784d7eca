"""``LeanRunner``: ties one MoE layer's router and experts to its skip state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.compat import MoERunner, current_platform
from leanmoe_runtime.device.attach import attach
from leanmoe_runtime.experts import LeanRoutedExperts
from leanmoe_runtime.hook import watch_requests
from leanmoe_runtime.layers import keep_transferred_mass, layer_index, own_layout
from leanmoe_runtime.stand_ins import StandIns, taken
from leanmoe_runtime.state import LayerState


class LeanRunner(MoERunner):  # type: ignore[misc]
    """Replaces vLLM's ``MoERunner`` by class name wherever a model builds one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_state: LayerState | None = None
        self.condensed = False
        experts = self.routed_experts
        if not isinstance(experts, LeanRoutedExperts):
            return  # the handshake names it
        if experts.of_draft:
            return  # the handshake says that it stays exact
        layer, own = layer_index(self.layer_name), own_layout(self.layer_name)
        self._hold(experts.stand_ins)
        scored = None if experts.stand_ins is None else experts.stand_ins.n_experts
        self.condensed = own is not None and own.condensed
        self.skip_state = LayerState(
            layer=layer,
            top_k=experts.top_k,
            renormalize=experts.renormalize,
            n_experts=scored or experts.global_num_experts,
            n_routed=scored or experts.moe_config.num_logical_experts,
        )
        if not self.condensed:
            experts.engine.state.add(self.skip_state)
        if own is not None and own.gate_rows is not None and not experts.renormalize:
            keep_transferred_mass(self.router)
        if current_platform.is_cpu():
            experts.attach(self.skip_state, condensed=self.condensed)
            watch_requests()
        elif self.condensed:
            experts.attach(self.skip_state, condensed=True)
        else:
            attach(self.router, experts, self.skip_state)

    def _hold(self, stand_ins: StandIns | None) -> None:
        """Let loaders find the stand-ins under the names that they have in the files."""
        for expert, holder in () if stand_ins is None else stand_ins.holders():
            self.add_module(expert, holder)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[str]:
        """Stock ``load_weights``, stand-ins aside; of models that load a layer through it."""
        stand_ins = getattr(self.routed_experts, "stand_ins", None)
        if stand_ins is None:
            yield from super().load_weights(weights)
            return
        loaded: list[str] = []
        yield from super().load_weights(taken(stand_ins, weights, loaded))
        yield from loaded

    @property
    def skip_mode(self) -> SkipMode:
        """How a skipped assignment is left out here."""
        experts = self.routed_experts
        if current_platform.is_cpu():
            keeps = isinstance(experts, LeanRoutedExperts) and experts.keeps_shapes()
            return SkipMode.REDIRECT if keeps else SkipMode.COMPACT
        return experts.device_mode() if isinstance(experts, LeanRoutedExperts) else SkipMode.ZERO
