"""What one worker holds per MoE layer: its beta, its counters, whether it ever ran."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from leanmoe.errors import LevelError
from leanmoe.messages import LayerCounts, PolicyUpdate


@dataclass
class LayerState:
    """One MoE layer's threshold and counts.

    ``beta`` is read by host code (CPU), ``beta_tensor`` by device code; both are
    written together. ``counts`` on the device is [tokens, skipped], int64. Host
    counts are plain integers.
    """

    layer: int
    top_k: int
    renormalize: bool
    beta: float = 0.0
    beta_tensor: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    device_counts: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    calls: int = 0
    tokens: int = 0
    skipped: int = 0

    def set_beta(self, beta: float) -> None:
        self.beta = beta
        self.beta_tensor.fill_(beta)

    def counts(self) -> LayerCounts:
        """Counts since the start; the only place that reads the device."""
        device_tokens, device_skipped = self.device_counts.tolist()
        tokens = self.tokens + device_tokens
        return LayerCounts(
            layer=self.layer,
            tokens=tokens,
            routed=tokens * self.top_k,
            skipped=self.skipped + device_skipped,
        )


class SkipState:
    """All layers of the model in this process and the policy in force."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerState] = {}
        self.level = 0.0
        self.version = 0

    def add(self, state: LayerState) -> LayerState:
        self.layers[state.layer] = state
        return state

    def apply(self, update: PolicyUpdate) -> None:
        """Set every layer's beta, or none: layers must be exactly the model's."""
        if set(update.betas) != set(self.layers):
            raise LevelError(
                f"the policy has betas for {len(update.betas)} layers and the worker holds "
                f"{len(self.layers)} MoE layers: measure the curve on this checkpoint again"
            )
        for layer, beta in update.betas.items():
            self.layers[layer].set_beta(min(max(beta, 0.0), 1.0))
        self.level, self.version = update.level, update.version

    def counts(self) -> list[LayerCounts]:
        return [self.layers[layer].counts() for layer in sorted(self.layers)]


SKIP_STATE = SkipState()
