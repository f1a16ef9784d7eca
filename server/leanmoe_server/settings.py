"""What a running server was told: the model's skipping, the first level, keys and deadlines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.curve import QualityCurve
from leanmoe.errors import LevelError
from leanmoe.layout import LayerLayout
from leanmoe.messages import Phases, UnionBudget
from leanmoe.policy import (
    EXACT,
    HUNDREDTHS,
    TOP1_ONLY,
    check_level,
    hundredths_of,
    request_code,
    resolve_betas,
)


@dataclass(frozen=True)
class Wish:
    """A level, or the quality loss (mean KLD in nats per token) that may not be exceeded."""

    level: float | None = None
    max_kld: float | None = None


@dataclass(frozen=True)
class RequestWish(Wish):
    """A single request's; ``deterministic`` keeps what other requests do out of its answer."""

    deterministic: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds for the whole engine beside the level."""

    phases: Phases = Phases.ALL
    union: UnionBudget | None = None


@dataclass(frozen=True)
class Resolved:
    """A wish as the workers will apply it."""

    level: float
    betas: dict[int, float]
    max_kld: float | None = None
    rules: Rules = Rules()


def check_max_kld(max_kld: Any) -> float:
    """Return ``max_kld`` as a float or raise ``LevelError``."""
    wrong_type = isinstance(max_kld, bool) or not isinstance(max_kld, int | float)
    try:
        number = math.nan if wrong_type else float(max_kld)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise LevelError(
            f"max_kld is {max_kld!r:.40}, expected a finite number >= 0 (nats per token)"
        )
    return number


@dataclass(frozen=True)
class SkipModel:
    """What the server must know to resolve levels: the model's MoE layers, its curve, the cap.

    ``layers`` and ``renormalize`` are what the checkpoint says; a loaded layer must agree.
    ``n_experts`` and ``top_k`` are those of a layer without numbers of its own, 0 if not known.
    """

    moe_layers: tuple[int, ...]
    curve: QualityCurve | None
    max_level: float = TOP1_ONLY
    layers: Mapping[int, LayerLayout] = field(default_factory=dict)
    renormalize: bool | None = None
    n_experts: int = 0
    top_k: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_level: float = TOP1_ONLY) -> SkipModel:
        manifest = checkpoint.manifest
        cap = check_level(max_level, "--max-skip-level")
        curve = manifest.curve if manifest else None
        shape = checkpoint.shape
        return cls(
            shape.moe_layers,
            curve,
            cap,
            checkpoint.layers,
            shape.renormalize,
            shape.n_routed_experts,
            shape.top_k,
        )

    @property
    def skip_layers(self) -> list[int]:
        """The layers that can skip: condensed ones never do."""
        own = self.layers
        return [i for i in self.moe_layers if not (i in own and own[i].condensed)]

    def resolve(self, wish: Wish, rules: Rules = Rules()) -> Resolved:
        """The level and betas a wish stands for; ``LevelError`` says why there are none."""
        if wish.max_kld is not None and rules.union is not None:
            raise LevelError(
                f"max_kld {wish.max_kld} promises what was measured, and no curve knows what a "
                "budget on distinct experts costs; give a level, or turn the budget off"
            )
        if rules.union is not None:
            self._check_union(rules.union.experts)
        level = self._level_of(wish)
        return Resolved(level, self._betas(level), wish.max_kld, rules)

    def _check_union(self, experts: int) -> None:
        """A budget below a token's own experts takes work from a token that runs alone."""
        own = [self.layers[i] for i in self.skip_layers if i in self.layers]
        most = max((one.n_experts for one in own), default=0)
        if len(own) < len(self.skip_layers):
            most = max(most, self.n_experts)
        if self.n_experts and not self.top_k <= experts <= most:
            raise LevelError(
                f"union_budget is {experts}, expected from {self.top_k}, what one token is routed "
                f"to, up to the {most} experts of a layer"
            )

    def request_level(self, wish: Wish) -> float:
        """The level of a single request, rounded down to a hundredth."""
        level = self._level_of(wish)
        self._betas(level)
        return hundredths_of(level) / HUNDREDTHS

    def request_code(self, wish: RequestWish) -> int:
        """What the workers are told of a single request; a promised loss depends on it alone."""
        alone = wish.deterministic or wish.max_kld is not None
        return request_code(hundredths_of(self.request_level(wish)), alone)

    def level_table(self) -> dict[int, dict[int, float]]:
        """Betas of every level a request may ask for, by hundredths."""
        wanted = range(hundredths_of(self.max_level) + 1)
        if self.curve is None:
            wanted = range(0, len(wanted), HUNDREDTHS)
        return {one: self._betas(one / HUNDREDTHS) for one in wanted}

    def _betas(self, level: float) -> dict[int, float]:
        return resolve_betas(level, self.skip_layers, self.curve)

    def _level_of(self, wish: Wish) -> float:
        if wish.max_kld is not None:
            return min(self._level_under(check_max_kld(wish.max_kld)), self.max_level)
        level = check_level(EXACT if wish.level is None else wish.level)
        if level > self.max_level:
            raise LevelError(
                f"level {level} is above {self.max_level}, the most this server allows "
                "(--max-skip-level); ask for less"
            )
        return level

    def _level_under(self, max_kld: float) -> float:
        if self.curve is None:
            raise LevelError(
                f"max_kld {max_kld} needs a quality curve and this model has none: "
                "run `leanmoe curve MODEL --data SPEC` first, or give level 0 or 1"
            )
        return self.curve.level_for_max_kld(max_kld)


@dataclass(frozen=True)
class ServeSettings:
    """Everything the routes and background tasks are configured with.

    ``request_levels_unavailable`` says why single requests may not choose, where they may not, and
    ``union_unavailable`` why there can be no budget on distinct experts. ``least_union`` is the
    smallest that captured graphs hold, where they hold one.
    """

    model: SkipModel
    wish: Wish
    rules: Rules = Rules()
    admin_key: str | None = field(default=None, repr=False)
    has_user_keys: bool = False
    every_worker_holds_all_layers: bool = True
    request_levels_unavailable: str | None = None
    union_unavailable: str | None = None
    least_union: int = 0
    poll_seconds: float = 5.0
    drain_seconds: float = 30.0

    def resolve(self, wish: Wish, rules: Rules) -> Resolved:
        """What ``wish`` and ``rules`` together come to; ``LevelError`` where they cannot be."""
        if rules.union is not None and self.union_unavailable is not None:
            raise LevelError(
                f"there can be no budget on distinct experts here: {self.union_unavailable}"
            )
        if rules.union is not None and rules.union.experts < self.least_union:
            raise LevelError(
                f"union_budget is {rules.union.experts}, and the graphs captured at the start hold "
                f"budgets of {self.least_union} experts and more; start the server with "
                f"--union-budget {rules.union.experts}"
            )
        if rules.phases is Phases.DECODE and self.request_levels_unavailable is not None:
            raise LevelError(
                "prompts and answers cannot be told apart here: "
                f"{self.request_levels_unavailable}; leave phases at 'all'"
            )
        return self.model.resolve(wish, rules)
