"""The model as the server knows it: from a policy or a request's target to levels and betas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leanmoe.checkpoint import Checkpoint
from leanmoe.curve import QualityCurve, Setting
from leanmoe.errors import CheckpointError, LevelError
from leanmoe.files.digest import bytes_digest
from leanmoe.layout import LayerLayout
from leanmoe.messages import ExpertFactors, LevelTable, PolicyUpdate
from leanmoe.policy import (
    EXACT,
    HUNDREDTHS,
    TOP1_ONLY,
    RequestLevel,
    check_level,
    hundredths_of,
    resolve_setting,
)
from leanmoe.skip_rule import SkipRule
from leanmoe_server.policy import Policy, Target


def model_digest(checkpoint: Checkpoint) -> str:
    """One digest of weights, config and curve: the manifest's.

    Without a manifest, of the config and of names and lengths of the weight files.
    """
    if checkpoint.manifest is not None:
        return checkpoint.manifest.digest()
    config = (checkpoint.path / "config.json").read_bytes()
    files = sorted(checkpoint.path.glob("*.safetensors"))
    sizes = [f"{file.name} {file.stat().st_size}\n".encode() for file in files]
    return bytes_digest([config, *sizes])


@dataclass(frozen=True)
class SkipModel:
    """What the server must know to resolve levels: the model's MoE layers, its curve, the cap.

    ``layers`` and ``renormalize`` are what the checkpoint says; a loaded layer must agree.
    ``n_experts`` and ``top_k`` are those of a layer without numbers of its own, 0 if not known;
    ``digest`` tells models apart.
    """

    moe_layers: tuple[int, ...]
    curve: QualityCurve | None
    max_level: float = TOP1_ONLY
    layers: Mapping[int, LayerLayout] = field(default_factory=dict)
    renormalize: bool | None = None
    n_experts: int = 0
    top_k: int = 0
    digest: str = ""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, max_level: float = TOP1_ONLY, rule: SkipRule | None = None
    ) -> SkipModel:
        """The model of a checkpoint, with ``rule`` at every level where one is given."""
        manifest = checkpoint.manifest
        cap = check_level(max_level, "--max-skip-level")
        curve = _of_rule(manifest.curve if manifest else None, rule)
        if curve is not None and curve.factors is not None:
            _check_factors(curve.factors, checkpoint)
        shape = checkpoint.shape
        return cls(
            shape.moe_layers,
            curve,
            cap,
            checkpoint.layers,
            shape.renormalize,
            shape.n_routed_experts,
            shape.top_k,
            model_digest(checkpoint),
        )

    @property
    def skip_layers(self) -> list[int]:
        """The layers that can skip: condensed ones never do."""
        own = self.layers
        return [i for i in self.moe_layers if not (i in own and own[i].condensed)]

    def resolve(self, policy: Policy, version: int = 0) -> PolicyUpdate:
        """What the workers apply for ``policy``; ``LevelError`` says why there is nothing."""
        target, union = policy.target, policy.union
        if target.max_kld is not None and union is not None:
            raise LevelError(
                f"max_kld {target.max_kld} promises what was measured, and no curve knows what a "
                "budget on distinct experts costs; give a level, or turn the budget off"
            )
        if union is not None:
            self._check_union(union.experts)
        level = self._level_of(target)
        setting = self._setting(level)
        return PolicyUpdate(
            level=level,
            rule=setting.rule,
            betas=setting.betas,
            version=version,
            phases=policy.phases,
            union=union,
        )

    def _check_union(self, experts: int) -> None:
        """A budget below a token's own experts takes work from a token that runs alone."""
        own = [self.layers[i] for i in self.skip_layers if i in self.layers]
        if any(one.stand_ins for one in own):
            raise LevelError(
                f"union_budget is {experts}, and this model has stand-ins in the place of removed "
                "experts, which a budget on distinct experts would count among them; give a level, "
                "or turn the budget off"
            )
        most = max((one.n_experts for one in own), default=0)
        if len(own) < len(self.skip_layers):
            most = max(most, self.n_experts)
        if self.n_experts and not self.top_k <= experts <= most:
            raise LevelError(
                f"union_budget is {experts}, expected from {self.top_k}, what one token is routed "
                f"to, up to the {most} experts of a layer"
            )

    def resolve_request(self, target: Target, deterministic: bool = False) -> RequestLevel:
        """A single request's level, rounded down; a promised loss depends on it alone."""
        level = self._level_of(target)
        self._setting(level)
        return RequestLevel(hundredths_of(level), deterministic or target.max_kld is not None)

    def level_table(self, key: str) -> LevelTable:
        """Rule and betas of every level a request may ask for, by hundredths."""
        wanted = range(hundredths_of(self.max_level) + 1)
        if self.curve is None:
            wanted = range(0, len(wanted), HUNDREDTHS)
        settings = {one: self._setting(one / HUNDREDTHS) for one in wanted}
        return LevelTable(
            key=key,
            betas={one: setting.betas for one, setting in settings.items()},
            rules={one: setting.rule for one, setting in settings.items()},
        )

    @property
    def factors(self) -> ExpertFactors | None:
        """What workers need for the norm rule, where a level of this model follows it."""
        curve = self.curve
        if curve is None or curve.factors is None:
            return None
        asked = any(point.rule is SkipRule.NORM for point in curve.points)
        return ExpertFactors(factors=curve.factors) if asked else None

    def _setting(self, level: float) -> Setting:
        return resolve_setting(level, self.skip_layers, self.curve)

    def _level_of(self, target: Target) -> float:
        if target.max_kld is not None:
            return min(self._level_under(target.max_kld), self.max_level)
        level = EXACT if target.level is None else float(target.level)
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


def _of_rule(curve: QualityCurve | None, rule: SkipRule | None) -> QualityCurve | None:
    """The curve, with ``rule`` at every level where one is asked for."""
    if rule is None or (curve is None and rule is SkipRule.RATIO):
        return curve
    if curve is None:
        raise LevelError(
            f"--skip-rule {rule} needs a quality curve measured with it and this model has none: "
            f"run `leanmoe curve MODEL --data SPEC --skip-rule {rule}` first, or leave it out"
        )
    return curve.by_rule(rule)


def _check_factors(factors: Mapping[int, Sequence[float]], checkpoint: Checkpoint) -> None:
    for layer, own in checkpoint.layers.items():
        held = len(factors.get(layer, ()))
        if not own.condensed and held != own.n_experts:
            raise CheckpointError(
                f"{checkpoint.path}: the quality curve has factors of {held} experts for layer "
                f"{layer}, which has {own.n_experts}: run `leanmoe curve` on this checkpoint again"
            )
