"""``leanmoe curve``: betas and the measured quality of every skip level, into the manifest."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from leanmoe.command import Command, Result
from leanmoe.curve import QualityCurve
from leanmoe.errors import InputError
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.commands.options import add_compute, add_data, add_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.evaluation.levels import LevelPass, calibrate_and_run, level_grid
from leanmoe_pruning.evaluation.quality_curve import build_curve, check_heldout, store_curve
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress

DEFAULT_LEVELS = 11
MIN_LEVELS, MAX_LEVELS = 3, 1001


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--calibration",
        metavar="SPEC",
        help="text for the betas (default: calibration split of --data, or a file's first half)",
    )
    parser.add_argument(
        "--levels",
        type=int,
        default=DEFAULT_LEVELS,
        metavar="N",
        help=f"levels measured, 0 and 1 included (default {DEFAULT_LEVELS})",
    )
    add_compute(parser)


def _load(args: argparse.Namespace, stream: DecoderStream) -> tuple[DataSet, DataSet]:
    """Calibration and held-out text."""
    checkpoint, window = stream.checkpoint, args.window
    if args.calibration is None:
        calibration = load_data(args.data, checkpoint, "calibration", window=window, files="halves")
        heldout = load_data(args.data, checkpoint, "heldout", window=window, files="halves")
    else:
        calibration = load_data(args.calibration, checkpoint, "calibration", window=window)
        heldout = load_data(args.data, checkpoint, "heldout", window=window)
    check_heldout(heldout)
    return calibration, heldout


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    if not MIN_LEVELS <= args.levels <= MAX_LEVELS:
        raise InputError(
            f"--levels is {args.levels}, expected a number from {MIN_LEVELS} to {MAX_LEVELS}"
        )
    checkpoint = open_runnable_model(args.model)
    stream = DecoderStream(checkpoint, args.compute)
    calibration, heldout = _load(args, stream)
    with stop_on_signals():
        with progress("levels through layers", stream.n_layers) as tick:
            betas, run = calibrate_and_run(
                stream, calibration.ids, heldout.ids, level_grid(args.levels), tick
            )
        with progress("comparing windows", heldout.windows) as tick:
            sums = run.measure(tick)
        curve = build_curve(betas, run, sums, heldout, calibration)
        manifest = store_curve(checkpoint, curve)
    return {
        "model": str(args.model),
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


COMMAND = Command(
    name="curve",
    help="Measure what each skip level costs and store it in the checkpoint's manifest.",
    example="leanmoe curve ./lean --data builtin:gen:4,builtin:c:4",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
