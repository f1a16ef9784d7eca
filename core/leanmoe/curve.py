"""The quality curve: what each skip level costs and what it skips.

A curve holds measured points at levels from 0 (exact) to 1 (top-1 only). Each
point carries one beta per MoE layer; betas between two points are interpolated
linearly, quality is not: a level between two points is promised the worse of
its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leanmoe.errors import LevelError


class CurvePoint(BaseModel):
    """One measured level.

    ``kld`` is the mean over tokens of KL(exact || skipped) in nats, ``kld_upper``
    its one-sided 95 % bound; ``skip_rate`` the share of routed assignments skipped.
    """

    model_config = ConfigDict(extra="forbid")

    level: float = Field(ge=0.0, le=1.0)
    betas: dict[int, float] = Field(description="decoder layer -> threshold on w_j / w_max")
    skip_rate: float = Field(ge=0.0, le=1.0)
    kld: float = Field(ge=0.0, allow_inf_nan=False)
    kld_upper: float = Field(ge=0.0, allow_inf_nan=False)
    top1_agreement: float = Field(ge=0.0, le=1.0)
    perplexity: float = Field(ge=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        wrong = {layer: b for layer, b in self.betas.items() if not 0.0 <= b <= 1.0}
        if wrong:
            layer, beta = next(iter(wrong.items()))
            raise ValueError(f"beta of layer {layer} is {beta}, expected a number in [0, 1]")
        return self


class QualityCurve(BaseModel):
    """Measured points in rising order of level, the first exact, the last top-1 only."""

    model_config = ConfigDict(extra="forbid")

    rule: str = Field(description="how betas follow from a level")
    data: str = Field(description="the held-out text the quality was measured on")
    calibration: str = Field(description="the text whose router weight ratios gave the betas")
    calibration_digest: str
    tokens: int = Field(gt=0, description="held-out tokens per level")
    median_betas: dict[int, float] = Field(description="the published median rule (NAEE)")
    points: list[CurvePoint] = Field(min_length=2)

    @model_validator(mode="after")
    def _ordered_and_complete(self) -> Self:
        levels = [point.level for point in self.points]
        if levels != sorted(set(levels)) or levels[0] != 0.0 or levels[-1] != 1.0:
            raise ValueError(f"levels must rise from 0 to 1, found {levels}")
        layers = set(self.points[0].betas)
        if any(set(point.betas) != layers for point in self.points):
            raise ValueError("every point must name the same layers")
        return self

    @property
    def layers(self) -> list[int]:
        return sorted(self.points[0].betas)

    def betas_at(self, level: float) -> dict[int, float]:
        """Betas per decoder layer at ``level``, linear between measured points."""
        above = bisect_left([point.level for point in self.points], level)
        high = self.points[above]
        if high.level == level or above == 0:
            return dict(high.betas)
        low = self.points[above - 1]
        share = (level - low.level) / (high.level - low.level)
        return {
            layer: low.betas[layer] + share * (high.betas[layer] - low.betas[layer])
            for layer in low.betas
        }

    def level_for_max_kld(self, max_kld: float) -> float:
        """The highest measured level such that it and all lower ones stay under ``max_kld``."""
        if not max_kld >= 0.0:
            raise LevelError(f"max_kld is {max_kld}, expected a number >= 0 (nats per token)")
        best = 0.0
        for point in self.points:
            if point.level > 0.0 and point.kld_upper > max_kld:
                break
            best = point.level
        return best

    def point_at(self, level: float) -> CurvePoint:
        """The measured point that bounds ``level`` from above."""
        return self.points[bisect_left([point.level for point in self.points], level)]
