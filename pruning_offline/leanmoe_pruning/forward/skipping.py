"""How each layer of a forward pass skips: what a level comes to, ready to be applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch

from leanmoe.curve import QualityCurve
from leanmoe.layout import LayerLayout
from leanmoe.policy import resolve_setting
from leanmoe.skip_rule import threshold_of


def factors_tensor(factors: list[float]) -> torch.Tensor:
    """Factors of the norm rule as the runtime holds them, float32 ``[E]``."""
    return torch.tensor(factors, dtype=torch.float32)


@dataclass(frozen=True)
class Skipping:
    """By layer: the threshold (``leanmoe.skip_rule``), and factors where there are any."""

    thresholds: Mapping[int, float] = field(default_factory=dict)
    factors: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def at(
        cls, level: float, layers: Mapping[int, LayerLayout], curve: QualityCurve | None
    ) -> Self:
        """``level`` of a model with these MoE layers and this curve; errors are a policy's."""
        skip_layers = [index for index, own in layers.items() if not own.condensed]
        setting = resolve_setting(level, skip_layers, curve)
        thresholds = {
            layer: threshold_of(setting.rule, beta, layers[layer].top_k)
            for layer, beta in setting.betas.items()
        }
        factors = None if curve is None else curve.factors
        return cls(thresholds, {i: factors_tensor(held) for i, held in (factors or {}).items()})


EXACT = Skipping()
