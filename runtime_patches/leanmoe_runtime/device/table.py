"""What a layer holds on the device: its betas and its counters, at addresses that never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

# Places in ``DeviceTable.counts``.
TOKENS, SKIPPED, NONFINITE, STEPS, DISTINCT, SUBSTITUTED, MASS = range(7)
_PLACES = 8
# Skipped weight is added up in whole parts of this, so that its sum has no order.
MASS_ONE = 1 << 32
WORD = 32


class DeviceCounts(NamedTuple):
    """A layer's counters since the start, as ``messages.LayerCounts`` defines them."""

    tokens: int = 0
    skipped: int = 0
    nonfinite: int = 0
    steps: int = 0
    distinct_experts: int = 0
    substituted: int = 0
    skipped_weight: float = 0.0


def on_device(values: torch.Tensor, target: torch.Tensor) -> None:
    """Bring host values to ``target`` behind what its stream has queued, without waiting for it."""
    staged = values if target.device.type == "cpu" else values.pin_memory()
    target.copy_(staged, non_blocking=True)


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """Persistent tensors of one layer; captured graphs hold their addresses.

    ``betas_R`` float32, row 0 the engine's; ``factors_E`` float32, of the norm rule.
    ``counts`` int64 [8], by the places above. ``seen_W`` int32: bits of the experts that the
    layer's last launch read, counted by the next layer's. ``mass_E`` int64 and ``bound_W`` int32
    are the budget's: gate weight of each expert in a step, and bits of those that no budget may
    leave out.
    """

    n_experts: int
    betas_R: torch.Tensor
    factors_E: torch.Tensor
    counts: torch.Tensor
    seen_W: torch.Tensor
    mass_E: torch.Tensor
    bound_W: torch.Tensor

    @classmethod
    def make(cls, betas: torch.Tensor, experts: int, device: torch.device | str) -> DeviceTable:
        """Zero counters and a copy of the host's ``betas`` on ``device``."""

        def zeros(size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        words = -(-experts // WORD)
        # Written in forward passes, which are in inference mode, and by policies, which are not.
        with torch.inference_mode(False):
            table = cls(
                n_experts=experts,
                betas_R=zeros(len(betas), torch.float32),
                factors_E=torch.ones(experts, dtype=torch.float32, device=device),
                counts=zeros(_PLACES, torch.int64),
                seen_W=zeros(words, torch.int32),
                mass_E=zeros(experts, torch.int64),
                bound_W=zeros(words, torch.int32),
            )
            table.push(betas)
        return table

    def push(self, betas: torch.Tensor) -> None:
        """Take the host's betas; the next step of any captured graph sees them."""
        on_device(betas, self.betas_R)

    def push_factors(self, factors: torch.Tensor) -> None:
        """Take the host's factors of experts."""
        on_device(factors, self.factors_E)

    def read(self) -> DeviceCounts:
        """The counters; waits for the device."""
        counts = self.counts.tolist()
        pending = sum((word & 0xFFFFFFFF).bit_count() for word in self.seen_W.tolist())
        return DeviceCounts(
            tokens=counts[TOKENS],
            skipped=counts[SKIPPED],
            nonfinite=counts[NONFINITE],
            steps=counts[STEPS],
            distinct_experts=counts[DISTINCT] + pending,
            substituted=counts[SUBSTITUTED],
            skipped_weight=counts[MASS] / MASS_ONE,
        )
