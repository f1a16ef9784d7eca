"""What a layer holds on the device: its betas and its counters, at addresses that never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class DeviceCounts(NamedTuple):
    """A layer's counters since the start, as ``messages.LayerCounts`` defines them."""

    tokens: int = 0
    skipped: int = 0
    nonfinite: int = 0
    steps: int = 0
    distinct_experts: int = 0
    dropped_mass: float = 0.0


@dataclass(frozen=True)
class DeviceTable:
    """Persistent tensors of one layer; captured graphs hold their addresses.

    ``betas_R`` float32, row 0 the engine's. ``counts`` int64 [tokens, skipped, nonfinite, steps,
    distinct experts]; ``mass`` float64 [1]. ``clock`` int64 [calls, programs through] and
    ``seen_E`` int64 [E + 1] are the kernel's own.
    """

    betas_R: torch.Tensor
    counts: torch.Tensor
    mass: torch.Tensor
    clock: torch.Tensor
    seen_E: torch.Tensor

    @classmethod
    def make(cls, betas: torch.Tensor, experts: int, device: torch.device | str) -> DeviceTable:
        """Zero counters and a copy of the host's ``betas`` on ``device``."""

        def zeros(size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        # Written in forward passes, which are in inference mode, and by policies, which are not.
        with torch.inference_mode(False):
            return cls(
                betas_R=betas.to(device=device, dtype=torch.float32, copy=True),
                counts=zeros(5),
                mass=zeros(1, torch.float64),
                clock=zeros(2),
                seen_E=zeros(experts + 1),
            )

    def push(self, betas: torch.Tensor) -> None:
        """Take the host's betas; the next step of any captured graph sees them."""
        self.betas_R.copy_(betas)

    def read(self) -> DeviceCounts:
        """The counters; waits for the device."""
        tokens, skipped, nonfinite, steps, distinct = self.counts.tolist()
        return DeviceCounts(tokens, skipped, nonfinite, steps, distinct, float(self.mass))
