"""From a level to the betas the workers apply, and what a single request tells them.

What a beta means is the rule's (``skip_rule``); one expert of a token always survives; weights are
renormalised only where the model's router does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from leanmoe.curve import QualityCurve, Setting
from leanmoe.errors import LevelError
from leanmoe.skip_rule import SkipRule

EXACT = 0.0
TOP1_ONLY = 1.0
# A request's own level is rounded down to this step, so that workers hold a table of them.
HUNDREDTHS = 100
_DETERMINISTIC = 128


def check_level(level: float, where: str = "skip level") -> float:
    """Return ``level`` as a float in [0, 1] or raise ``LevelError``."""
    number = isinstance(level, int | float) and not isinstance(level, bool)
    # The comparison also refuses NaN.
    if not number or not EXACT <= level <= TOP1_ONLY:
        raise LevelError(
            f"{where} is {level!r}, outside [0, 1]; give a number from 0 (exact) to 1 (top-1 only)"
        )
    return float(level)


def hundredths_of(level: float) -> int:
    """``level`` in whole hundredths, rounded down: never more is skipped than was asked for."""
    return int(level * HUNDREDTHS + 1e-9)


@dataclass(frozen=True)
class RequestLevel:
    """A single request's own level; ``deterministic``: no batch mate may change the answer.

    It is one whole number on its way from the server to the workers.
    """

    hundredths: int
    deterministic: bool = False

    @classmethod
    def unpack(cls, packed: int) -> Self:
        """What ``pack`` gave; any other number is clamped to something that workers hold."""
        within = min(max(packed, 0), 2 * _DETERMINISTIC - 1)
        deterministic, hundredths = divmod(within, _DETERMINISTIC)
        return cls(min(hundredths, HUNDREDTHS), bool(deterministic))

    def pack(self) -> int:
        return self.hundredths + _DETERMINISTIC * self.deterministic

    @property
    def level(self) -> float:
        return self.hundredths / HUNDREDTHS

    @property
    def past_budgets(self) -> bool:
        """True where no budget on distinct experts may touch the request's tokens."""
        return self.deterministic or self.hundredths == 0


def resolve_setting(level: float, layers: Iterable[int], curve: QualityCurve | None) -> Setting:
    """Rule and betas per decoder layer at ``level``.

    Levels 0 and 1 need no curve. Any other does, and the curve must name exactly
    the model's MoE ``layers``.
    """
    check_level(level)
    wanted = sorted(layers)
    if level in (EXACT, TOP1_ONLY):
        rule = SkipRule.RATIO if curve is None else curve.setting_at(level).rule
        return Setting(rule, dict.fromkeys(wanted, level))
    if curve is None:
        raise LevelError(
            f"skip level {level} needs a quality curve and this model has none: "
            "run `leanmoe curve MODEL --data SPEC` first, or use level 0 or 1"
        )
    if curve.layers != wanted:
        raise LevelError(
            f"the quality curve holds betas for {len(curve.layers)} layers and the model has "
            f"{len(wanted)} MoE layers: run `leanmoe curve` on this checkpoint again"
        )
    return curve.setting_at(level)
