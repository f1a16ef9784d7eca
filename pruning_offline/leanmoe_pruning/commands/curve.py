"""``leanmoe curve``: betas and the measured quality of every skip level, into the manifest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanmoe.command import Result
from leanmoe.curve import QualityCurve
from leanmoe.errors import InputError
from leanmoe.process.interrupts import stop_on_signals
from leanmoe.skip_rule import SkipRule
from leanmoe_pruning.checkpoints.opening import OpenedModel, open_runnable_model
from leanmoe_pruning.data import DataSet, FileShare, load_data
from leanmoe_pruning.data.builtin import Split
from leanmoe_pruning.evaluation.expert_factors import bundled_factors
from leanmoe_pruning.evaluation.levels import (
    LevelPass,
    Variant,
    calibrate_and_run,
    level_grid,
    variants_of,
)
from leanmoe_pruning.evaluation.quality_curve import build_curve, check_heldout, store_curve
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.options import (
    command_of,
    compute_option,
    data_option,
    model_argument,
    option,
    window_option,
)
from leanmoe_pruning.progress import progress

DEFAULT_LEVELS = 11
MIN_LEVELS, MAX_LEVELS = 3, 1001
BEST = "best"
# NAEE's rule was published for two experts per token.
_AS_PUBLISHED_UP_TO = 2


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """What ``leanmoe curve`` takes."""

    model: Path = model_argument()
    data: str = data_option()
    window: int = window_option()
    calibration: str | None = option(
        "text for the betas (default: calibration split of --data, or a file's first half)",
        metavar="SPEC",
    )
    levels: int = option(
        f"levels measured, 0 and 1 included (default {DEFAULT_LEVELS})",
        default=DEFAULT_LEVELS,
        metavar="N",
        within=(MIN_LEVELS, MAX_LEVELS),
    )
    skip_rule: str | None = option(
        "one rule at every level, or the best of all three at each (default: best where a token is "
        "routed to more than 2 experts, else ratio, as published)",
        choices=(BEST, *SkipRule),
    )
    scores: Path | None = option(
        "score bundle of the model, or of the one it was cut from, that says how much each expert "
        "puts out (default: measured on the calibration text)",
        metavar="DIR",
    )
    compute: str | None = compute_option()
    seed: int = 0


def _rules(options: CurveOptions, checkpoint: OpenedModel) -> list[SkipRule]:
    """The rules to measure."""
    asked = options.skip_rule
    if asked is None:
        top_k = max((checkpoint.layers[i].top_k for i in checkpoint.skip_layers), default=1)
        asked = BEST if top_k > _AS_PUBLISHED_UP_TO else SkipRule.RATIO
    rules = list(SkipRule) if asked == BEST else [SkipRule(asked)]
    if options.scores is not None and SkipRule.NORM not in rules:
        raise InputError(
            f"--scores says how much experts put out, and rule {rules[0]} does not ask; leave it "
            f"out, or give --skip-rule {BEST} or {SkipRule.NORM}"
        )
    return rules


def _factors(options: CurveOptions, checkpoint: OpenedModel) -> dict[int, list[float]]:
    return {} if options.scores is None else bundled_factors(options.scores, checkpoint)


def _load(options: CurveOptions, stream: DecoderStream) -> tuple[DataSet, DataSet]:
    """Calibration and held-out text."""
    checkpoint, window = stream.checkpoint, options.window
    text, own = options.data, options.calibration
    files: FileShare = "halves" if own is None else "all"

    def load(spec: str, split: Split) -> DataSet:
        return load_data(spec, checkpoint, split, window=window, files=files, seed=options.seed)

    calibration = load(text if own is None else own, "calibration")
    heldout = load(text, "heldout")
    check_heldout(heldout)
    return calibration, heldout


@torch.inference_mode()
def _run(options: CurveOptions) -> Result:
    started = time.monotonic()
    checkpoint = open_runnable_model(options.model)
    rules = _rules(options, checkpoint)
    factors = _factors(options, checkpoint)
    stream = DecoderStream(checkpoint, options.compute)
    calibration, heldout = _load(options, stream)
    variants = variants_of(rules, level_grid(options.levels))
    with stop_on_signals():
        with progress("levels through layers", stream.n_layers) as tick:
            betas, run = calibrate_and_run(
                stream, calibration.ids, heldout.ids, variants, tick, factors
            )
        with progress("comparing windows", heldout.windows) as tick:
            sums = run.measure(tick)
        curve = build_curve(betas, run, sums, heldout, calibration)
        manifest = store_curve(checkpoint, curve)
    return {
        "model": str(options.model),
        "manifest_digest": manifest.digest(),
        "seconds": round(time.monotonic() - started, 1),
        **_curve_json(curve, run, variants),
    }


def _curve_json(curve: QualityCurve, run: LevelPass, variants: Sequence[Variant]) -> dict[str, Any]:
    content = curve.model_dump(mode="json")
    for held, point in zip(curve.points, content["points"], strict=True):
        index = variants.index(Variant(held.rule, held.level)) if held.level else 0
        point["rule"] = held.rule
        point["skipped_by_layer"] = {
            str(layer): counts[index] for layer, counts in run.skipped.items()
        }
    counts = set(run.routed.values())
    return {
        **content,
        "routed_per_layer": counts.pop() if len(counts) == 1 else None,
        "routed_by_layer": {str(layer): count for layer, count in run.routed.items()},
    }


def _show(result: Result) -> str:
    lines = ["level  rule   skipped       KLD  (bound)  top-1 same  perplexity"]
    for point in result["points"]:
        lines.append(
            f"{point['level']:5.2f}  {point['rule']:5}  {point['skip_rate']:7.1%}  "
            f"{point['kld']:8.5f}  {point['kld_upper']:7.5f}  {point['top1_agreement']:9.1%}  "
            f"{point['perplexity']:9.3f}"
        )
    return "\n".join(lines)


COMMAND = command_of(
    CurveOptions,
    _run,
    name="curve",
    summary="Measure what each skip level costs and store it in the checkpoint's manifest.",
    example="leanmoe curve ./lean --data builtin:gen:4,builtin:c:4",
    show=_show,
)
