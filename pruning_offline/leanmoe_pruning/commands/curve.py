"""``leanmoe curve``: betas and the measured quality of every skip level, into the manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanmoe.command import Result
from leanmoe.curve import QualityCurve
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.data import DataSet, FileShare, load_data
from leanmoe_pruning.data.builtin import Split
from leanmoe_pruning.evaluation.levels import LevelPass, calibrate_and_run, level_grid
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
    compute: str | None = compute_option()
    seed: int = 0


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
    stream = DecoderStream(checkpoint, options.compute)
    calibration, heldout = _load(options, stream)
    with stop_on_signals():
        with progress("levels through layers", stream.n_layers) as tick:
            betas, run = calibrate_and_run(
                stream, calibration.ids, heldout.ids, level_grid(options.levels), tick
            )
        with progress("comparing windows", heldout.windows) as tick:
            sums = run.measure(tick)
        curve = build_curve(betas, run, sums, heldout, calibration)
        manifest = store_curve(checkpoint, curve)
    return {
        "model": str(options.model),
        "manifest_digest": manifest.digest(),
        "seconds": round(time.monotonic() - started, 1),
        **_curve_json(curve, run),
    }


def _curve_json(curve: QualityCurve, run: LevelPass) -> dict[str, Any]:
    content = curve.model_dump(mode="json")
    for index, point in enumerate(content["points"]):
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
    lines = ["level  skipped       KLD  (bound)  top-1 same  perplexity"]
    for point in result["points"]:
        lines.append(
            f"{point['level']:5.2f}  {point['skip_rate']:6.1%}  {point['kld']:8.5f}  "
            f"{point['kld_upper']:7.5f}  {point['top1_agreement']:9.1%}  {point['perplexity']:9.3f}"
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
