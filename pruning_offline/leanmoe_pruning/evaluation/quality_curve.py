"""The quality curve of a checkpoint: betas per level and what each level costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from leanmoe.checkpoint import Checkpoint
from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.errors import CheckpointError, DataError, OutputError
from leanmoe.files.digest import file_digest, tool_versions
from leanmoe.manifest import NO_CUT, Manifest, write_manifest
from leanmoe.skip_rule import SkipRule
from leanmoe_pruning.checkpoints.opening import model_files
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.evaluation.comparison import WindowSums
from leanmoe_pruning.evaluation.levels import Betas, LevelPass, Variant

RULE = (
    "beta of a layer is the level-quantile of its calibration ratios {ratios} over all "
    "assignments but each token's first{static}; kld_upper is a one-sided 95 % Student t bound "
    "over held-out windows; matrix products in {compute}"
)
_RATIOS = {SkipRule.RATIO: "w_j / w_max", SkipRule.NORM: "w_j f_j / max(w f)"}
_STATIC = " (topk: that share of each token's, over all layers)"


def check_heldout(heldout: DataSet) -> None:
    """Raise when the held-out text is too short for a confidence bound."""
    if heldout.windows < 2:
        raise DataError(
            f"--data {heldout.spec!r} gives {heldout.windows} held-out window and a bound on the "
            "KLD needs at least 2; give more text"
        )


def build_curve(
    betas: Betas,
    run: LevelPass,
    sums: Sequence[WindowSums],
    heldout: DataSet,
    calibration: DataSet,
) -> QualityCurve:
    """Put measurements into the form the manifest stores: at each level the best rule measured."""
    points = [
        _point(one, index, betas, run, found)
        for index, (one, found) in enumerate(zip(betas.variants, sums, strict=True))
    ]
    measured = _by_rule(points)
    several = len(measured) > 1
    return QualityCurve(
        rule=_said(list(measured), run),
        data=heldout.spec,
        calibration=calibration.spec,
        calibration_digest=calibration.digest(),
        tokens=heldout.tokens,
        median_betas=betas.median,
        factors=betas.factors or None,
        points=best_points(measured) if several else points,
        measured=measured if several else {},
    )


def _by_rule(points: Sequence[CurvePoint]) -> dict[SkipRule, list[CurvePoint]]:
    """Each rule's own points, the exact one among them."""
    exact, rest = points[0], points[1:]
    rules = dict.fromkeys(point.rule for point in rest)
    return {
        rule: [exact.model_copy(update={"rule": rule}), *(p for p in rest if p.rule is rule)]
        for rule in rules
    }


def _said(rules: Sequence[SkipRule], run: LevelPass) -> str:
    ratios = " or ".join(_RATIOS[rule] for rule in rules if rule in _RATIOS) or "of no rule"
    static = _STATIC if SkipRule.TOPK in rules else ""
    compute = str(run.stream.compute).removeprefix("torch.")
    return RULE.format(ratios=ratios, static=static, compute=compute)


def best_points(measured: Mapping[SkipRule, Sequence[CurvePoint]]) -> list[CurvePoint]:
    """At every level the rule with the least KLD at an equal skip rate.

    A higher level never skips less: a rule that would is passed over.
    """
    chosen: list[CurvePoint] = []
    for points in list(zip(*measured.values(), strict=True))[1:]:
        least = chosen[-1].skip_rate if chosen else 0.0
        candidates = [point for point in points if point.skip_rate >= least]
        candidates = candidates or [max(points, key=lambda point: point.skip_rate)]
        rate = fmean(point.skip_rate for point in candidates)
        chosen.append(min(candidates, key=lambda point: _kld_at(rate, measured[point.rule])))
    return [measured[chosen[0].rule][0], *chosen]


def _kld_at(rate: float, points: Sequence[CurvePoint]) -> float:
    """A rule's KLD at a skip rate, linear between the levels it was measured at."""
    rates = np.maximum.accumulate([point.skip_rate for point in points])
    return float(np.interp(rate, rates, [point.kld for point in points]))


def _point(one: Variant, index: int, betas: Betas, run: LevelPass, found: WindowSums) -> CurvePoint:
    kld = found.mean_kld()
    if not math.isfinite(kld.upper()):
        raise CheckpointError(
            f"{run.stream.checkpoint.path} predicts no finite probabilities at level {one.level}, "
            "so nothing can be promised; score and serve a model whose weights are sound"
        )
    return CurvePoint(
        level=one.level,
        rule=one.rule,
        betas=betas.at(index),
        skip_rate=run.skip_rate(index),
        kld=kld.mean,
        kld_upper=kld.upper(),
        top1_agreement=found.top1_agreement(),
        perplexity=found.perplexity(),
    )


def store_curve(checkpoint: Checkpoint, curve: QualityCurve) -> Manifest:
    """Write the curve into the checkpoint's manifest, making one where there is none."""
    manifest = (checkpoint.manifest or _bare_manifest(checkpoint)).model_copy(
        update={"curve": curve}
    )
    try:
        write_manifest(checkpoint.path, manifest)
    except OSError as error:
        raise OutputError(
            f"could not write the manifest of {checkpoint.path}: {error.strerror}; "
            "the old one, if any, is untouched"
        ) from error
    return manifest


def _bare_manifest(checkpoint: Checkpoint) -> Manifest:
    return Manifest(
        family=checkpoint.family.name,
        method=NO_CUT,
        tools=tool_versions(),
        files=_digests(checkpoint.path),
    )


def _digests(path: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in model_files(path)}
