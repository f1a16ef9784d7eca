"""The quality curve of a checkpoint: betas per level and what each level costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from leanmoe.checkpoint import Checkpoint
from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.errors import CheckpointError, DataError, OutputError
from leanmoe.files.digest import file_digest, tool_versions
from leanmoe.manifest import Manifest, write_manifest
from leanmoe_pruning.checkpoints.opening import model_files
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.evaluation.comparison import WindowSums
from leanmoe_pruning.evaluation.levels import Betas, LevelPass

RULE = (
    "beta of a layer is the level-quantile of its calibration ratios w_j / w_max over all "
    "assignments but each token's first; kld_upper is a one-sided 95 % Student t bound over "
    "held-out windows"
)


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
    """Put measurements into the form the manifest stores."""
    points = [
        _point(level, index, betas, run, found)
        for index, (level, found) in enumerate(zip(betas.levels, sums, strict=True))
    ]
    return QualityCurve(
        rule=f"{RULE}; matrix products in {str(run.stream.compute).removeprefix('torch.')}",
        data=heldout.spec,
        calibration=calibration.spec,
        calibration_digest=calibration.digest(),
        tokens=heldout.tokens,
        median_betas=betas.median,
        points=points,
    )


def _point(level: float, index: int, betas: Betas, run: LevelPass, found: WindowSums) -> CurvePoint:
    kld = found.mean_kld()
    if not math.isfinite(kld.upper()):
        raise CheckpointError(
            f"{run.stream.checkpoint.path} predicts no finite probabilities at level {level}, so "
            "nothing can be promised; score and serve a model whose weights are sound"
        )
    return CurvePoint(
        level=level,
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
        method="none",
        tools=tool_versions(),
        files=_digests(checkpoint.path),
    )


def _digests(path: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in model_files(path)}
