"""How a student is trained: what the user chose, and the learning rate that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from leanmoe_pruning.distillation.filters import ROUTERS


@dataclass(frozen=True)
class Settings:
    """Steps are updates; with ``local`` each layer makes that many."""

    steps: int
    lr: float
    # Whether ``lr`` is a share of the root mean square of a layer's weights: models differ in
    # that by more than ten times, and a layer alone has no other scale.
    relative: bool
    batch: int
    weight_decay: float
    train: str
    local: bool
    seed: int

    @property
    def routers_alone(self) -> bool:
        """Whether only routers are trained, towards the teacher's next tokens."""
        return self.train == ROUTERS

    def scale(self, parameters: list[nn.Parameter]) -> float:
        """What ``lr`` is multiplied by for a layer with these weights."""
        if not self.relative:
            return 1.0
        squares = sum(float(one.detach().square().sum()) for one in parameters)
        return math.sqrt(squares / max(1, sum(one.numel() for one in parameters)))

    def rate(self, step: int, scale: float = 1.0) -> float:
        """Cosine from ``lr`` to 0."""
        return 0.5 * self.lr * scale * (1 + math.cos(math.pi * step / self.steps))

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
