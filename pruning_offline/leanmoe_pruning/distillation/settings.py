"""How a student is trained: what the user chose, and the learning rate that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    """Steps are updates; with ``local`` each layer makes that many."""

    steps: int
    lr: float
    batch: int
    weight_decay: float
    train: str
    local: bool
    seed: int

    def rate(self, step: int) -> float:
        """Cosine from ``lr`` to 0."""
        return 0.5 * self.lr * (1 + math.cos(math.pi * step / self.steps))

    def generator(self, stream: int) -> torch.Generator:
        """Random numbers of their own for each ``stream``, a layer or an epoch."""
        return torch.Generator().manual_seed((self.seed << 20) + stream)

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)


def update(optimiser: torch.optim.AdamW, rate: float) -> None:
    """One step at a learning rate, the gradients then dropped."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
