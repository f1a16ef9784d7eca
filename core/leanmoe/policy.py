"""From a requested level to the betas the workers apply.

The skip rule: keep expert j of a token when w_j >= beta_layer * w_max; the
largest always survives; renormalise only where the model's router does.
"""

from __future__ import annotations

from collections.abc import Iterable

from leanmoe.curve import QualityCurve
from leanmoe.errors import LevelError

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


def request_code(hundredths: int, deterministic: bool) -> int:
    """What a request tells the workers, as one number."""
    return hundredths + _DETERMINISTIC * deterministic


def decode_request(code: int) -> tuple[int, bool]:
    """(Hundredths of a level within [0, 100], whether no batch mate may change the answer)."""
    deterministic, hundredths = divmod(min(max(code, 0), 2 * _DETERMINISTIC - 1), _DETERMINISTIC)
    return min(hundredths, HUNDREDTHS), bool(deterministic)


def resolve_betas(
    level: float, layers: Iterable[int], curve: QualityCurve | None
) -> dict[int, float]:
    """Betas per decoder layer at ``level``.

    Levels 0 and 1 need no curve. Any other does, and the curve must name exactly
    the model's MoE ``layers``.
    """
    check_level(level)
    wanted = sorted(layers)
    if level in (EXACT, TOP1_ONLY):
        return dict.fromkeys(wanted, level)
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
    return curve.betas_at(level)
