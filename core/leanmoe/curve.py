"""The quality curve: what each skip level costs and what it skips.

A curve holds measured points at levels from 0 (exact) to 1 (one expert per token). Each
point carries its skip rule and one beta per MoE layer; betas between two points are interpolated
linearly, quality is not: a level between two points is promised the worse of
its neighbours. Between points of different rules the lower one's setting holds.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from leanmoe.errors import LevelError
from leanmoe.skip_rule import Factor, SkipRule


@dataclass(frozen=True)
class Setting:
    """What a level comes to: a rule, and its beta in every layer that can skip."""

    rule: SkipRule
    betas: dict[int, float]


class CurvePoint(BaseModel):
    """One measured level.

    ``kld`` is the mean over tokens of KL(exact || skipped) in nats, ``kld_upper``
    its one-sided 95 % bound; ``skip_rate`` the share of routed assignments skipped.
    """

    model_config = ConfigDict(extra="forbid")

    level: float = Field(ge=0.0, le=1.0)
    rule: SkipRule = Field(default=SkipRule.RATIO, description="what the betas are thresholds of")
    betas: dict[int, float] = Field(description="decoder layer -> beta of the rule")
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

    @model_serializer(mode="wrap")
    def _without_the_published_rule(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Curves written before there were others keep their digest.
        return _without(dump(self), rule=SkipRule.RATIO)

    @property
    def setting(self) -> Setting:
        return Setting(self.rule, dict(self.betas))


class QualityCurve(BaseModel):
    """Measured points in rising order of level, the first exact, the last with one expert each.

    ``points`` are in force. Where several rules were measured, ``measured`` has each one's own, and
    ``points`` the best of them at every level. ``factors`` are those of the norm rule.
    """

    model_config = ConfigDict(extra="forbid")

    rule: str = Field(description="how betas follow from a level")
    data: str = Field(description="the held-out text the quality was measured on")
    calibration: str = Field(description="the text that gave betas and factors")
    calibration_digest: str
    tokens: int = Field(gt=0, description="held-out tokens per level")
    median_betas: dict[int, float] = Field(description="the published median rule (NAEE)")
    factors: dict[int, list[Factor]] | None = Field(
        default=None, description="decoder layer -> mean output norm of each expert, mean 1"
    )
    points: list[CurvePoint] = Field(min_length=2)
    measured: dict[SkipRule, list[CurvePoint]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ordered_and_complete(self) -> Self:
        layers = set(self.points[0].betas)
        for points in (self.points, *self.measured.values()):
            levels = [point.level for point in points]
            if levels != sorted(set(levels)) or levels[:1] != [0.0] or levels[-1:] != [1.0]:
                raise ValueError(f"levels must rise from 0 to 1, found {levels}")
            if any(set(point.betas) != layers for point in points):
                raise ValueError("every point must name the same layers")
        return self

    @model_validator(mode="after")
    def _factors_fit(self) -> Self:
        if self.factors is None and SkipRule.NORM in self.rules:
            raise ValueError("a point follows the norm rule and there are no factors for it")
        if self.factors is not None and set(self.factors) != set(self.layers):
            raise ValueError("the factors must name the layers that the points name")
        return self

    @model_serializer(mode="wrap")
    def _without_what_one_rule_needs_not(
        self, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return _without(dump(self), factors=None, measured={})

    @property
    def layers(self) -> list[int]:
        return sorted(self.points[0].betas)

    @property
    def rules(self) -> list[SkipRule]:
        """The rules of its points and of those beside them."""
        named = {point.rule for point in self.points} | set(self.measured)
        return [rule for rule in SkipRule if rule in named]

    def by_rule(self, rule: SkipRule) -> QualityCurve:
        """The curve of one rule at every level; ``LevelError`` where it was not measured."""
        points = self.measured.get(rule)
        if points is None and {point.rule for point in self.points} == {rule}:
            points = self.points
        if points is None:
            raise LevelError(
                f"the quality curve was measured for {', '.join(self.rules)} and not for {rule}: "
                f"run `leanmoe curve MODEL --data SPEC --skip-rule {rule}` first, or leave "
                "--skip-rule out"
            )
        return self.model_copy(update={"points": points, "measured": {}})

    def setting_at(self, level: float) -> Setting:
        """Rule and betas at ``level``."""
        above = bisect_left([point.level for point in self.points], level)
        high = self.points[above]
        if high.level == level or above == 0:
            return high.setting
        low = self.points[above - 1]
        if low.rule is not high.rule:
            return low.setting
        share = (level - low.level) / (high.level - low.level)
        betas = {
            layer: low.betas[layer] + share * (high.betas[layer] - low.betas[layer])
            for layer in low.betas
        }
        return Setting(low.rule, betas)

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


def _without(content: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """``content`` less the fields that say nothing."""
    return {
        name: value
        for name, value in content.items()
        if name not in defaults or value != defaults[name]
    }
