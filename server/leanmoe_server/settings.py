"""What a running server was told: the model's skipping, the first level, keys and deadlines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.curve import QualityCurve
from leanmoe.errors import LevelError
from leanmoe.policy import check_level, resolve_betas


@dataclass(frozen=True)
class Wish:
    """A level, or the quality loss (mean KLD in nats per token) that may not be exceeded."""

    level: float | None = None
    max_kld: float | None = None


@dataclass(frozen=True)
class Resolved:
    """A wish as the workers will apply it."""

    level: float
    betas: dict[int, float]
    max_kld: float | None = None


def check_max_kld(max_kld: Any) -> float:
    """Return ``max_kld`` as a float or raise ``LevelError``."""
    wrong_type = isinstance(max_kld, bool) or not isinstance(max_kld, int | float)
    if wrong_type or not math.isfinite(max_kld) or max_kld < 0:
        raise LevelError(f"max_kld is {max_kld!r}, expected a finite number >= 0 (nats per token)")
    return float(max_kld)


@dataclass(frozen=True)
class SkipModel:
    """What the server must know of a model to resolve levels: its MoE layers and its curve."""

    moe_layers: tuple[int, ...]
    curve: QualityCurve | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SkipModel:
        manifest = checkpoint.manifest
        return cls(checkpoint.shape.moe_layers, manifest.curve if manifest else None)

    def resolve(self, wish: Wish) -> Resolved:
        """The level and betas a wish stands for; ``LevelError`` says why there are none."""
        level = check_level(0.0 if wish.level is None else wish.level)
        if wish.max_kld is not None:
            level = self._level_under(check_max_kld(wish.max_kld))
        return Resolved(level, resolve_betas(level, self.moe_layers, self.curve), wish.max_kld)

    def _level_under(self, max_kld: float) -> float:
        if self.curve is None:
            raise LevelError(
                f"max_kld {max_kld} needs a quality curve and this model has none: "
                "run `leanmoe curve MODEL --data SPEC` first, or give level 0 or 1"
            )
        return self.curve.level_for_max_kld(max_kld)


@dataclass(frozen=True)
class ServeSettings:
    """Everything the routes and background tasks are configured with."""

    model: SkipModel
    wish: Wish
    admin_key: str | None = field(default=None, repr=False)
    has_user_keys: bool = False
    every_worker_holds_all_layers: bool = True
    poll_seconds: float = 5.0
    drain_seconds: float = 30.0
