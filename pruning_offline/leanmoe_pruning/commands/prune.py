"""``leanmoe prune``: choose experts, cut them out, write a lean checkpoint with its manifest."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.interrupts import stop_on_signals
from leanmoe.manifest import Manifest, write_manifest
from leanmoe.provenance import atomic_directory, check_output
from leanmoe_pruning.bundle import ScoreBundle
from leanmoe_pruning.commands.options import (
    DEFAULT_BATCH,
    MAX_BATCH,
    add_compute,
    add_data,
    add_model,
    add_output,
)
from leanmoe_pruning.cut import Cutter
from leanmoe_pruning.data import load_data
from leanmoe_pruning.methods.selection import LayerChoice, check_enumerable, check_keep
from leanmoe_pruning.model import check_runnable, check_uniform, open_model, source_digests
from leanmoe_pruning.plan import read_plan
from leanmoe_pruning.progress import progress
from leanmoe_pruning.prune_job import METHODS, PLANNED, VARIANTS, Choosing, PruneJob


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--method", choices=METHODS, help="how experts are chosen")
    parser.add_argument("--keep", type=int, metavar="N", help="experts per layer")
    parser.add_argument(
        "--plan", type=Path, metavar="PLAN", help="a JSON file that says it for each layer instead"
    )
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="layerwise",
        help="naee: layers alone, or each after the earlier ones were pruned",
    )
    parser.add_argument("--scores", type=Path, metavar="SCORES", help="a bundle to decide from")
    add_data(parser, required=False)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH,
        metavar="WINDOWS",
        help=f"windows per batch of the naee loss (default {DEFAULT_BATCH})",
    )
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write what was decided on")
    add_compute(parser)
    add_output(parser, "lean checkpoint directory to write")


def _check(args: argparse.Namespace) -> PruneJob:
    """Refuse whatever can be refused before any work."""
    if args.plan is not None:
        return _check_planned(args)
    if args.method is None or args.keep is None:
        raise InputError("give --method and --keep, or --plan PLAN")
    how = Choosing(args.method, args.keep, args.variant, args.batch_size, args.seed)
    checkpoint = open_model(args.model)
    check_uniform(checkpoint)
    if args.method != "random":
        check_runnable(checkpoint)
    check_keep(args.keep, checkpoint.shape, str(args.model))
    if args.method == "naee":
        check_enumerable(args.keep, checkpoint.shape)
    _check_outputs(args)
    _check_inputs(args, how)
    data = None
    if args.data is not None:
        data = load_data(args.data, checkpoint, "calibration", window=args.window)
    source = source_digests(args.model)
    bundle = None
    if args.scores is not None:
        bundle = ScoreBundle(args.scores)
        bundle.check_model(checkpoint, source)
    return PruneJob(checkpoint, source, how, data, bundle, args.compute)


def _check_planned(args: argparse.Namespace) -> PruneJob:
    given = [
        name
        for name in ("method", "keep", "scores", "data", "dump", "compute")
        if getattr(args, name) is not None
    ]
    if given:
        raise InputError(f"--plan says what is cut and --{given[0]} was given too; drop one")
    checkpoint = open_model(args.model)
    check_output(args.out, args.force, [args.model, args.plan])
    plan = read_plan(args.plan, checkpoint)
    how = Choosing(PLANNED, None, args.variant, args.batch_size, args.seed)
    return PruneJob(checkpoint, source_digests(args.model), how, None, None, None, plan)


def _check_outputs(args: argparse.Namespace) -> None:
    inputs = [args.model, *([] if args.scores is None else [args.scores])]
    check_output(args.out, args.force, inputs)
    if args.dump is not None:
        check_output(args.dump, args.force, [*inputs, args.out])


def _check_inputs(args: argparse.Namespace, how: Choosing) -> None:
    if how.needs_forward and args.data is None:
        raise InputError(
            "the progressive variant runs the model again as it prunes; give --data SPEC"
        )
    if how.method != "random" and args.data is None and args.scores is None:
        raise InputError(f"--method {how.method} decides from data; give --scores or --data SPEC")
    if args.data is not None and args.scores is not None:
        raise InputError("--scores and --data were both given; the bundle holds its data, drop one")
    if not 1 <= how.batch_size <= MAX_BATCH:
        raise InputError(
            f"--batch-size is {how.batch_size}, expected a number from 1 to {MAX_BATCH}"
        )
    if args.compute is not None and args.scores is not None:
        raise InputError(
            "--compute was given with --scores, whose statistics are computed already; drop one"
        )


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    job = _check(args)
    with stop_on_signals():
        title = f"{job.choosing.method}: choosing experts"
        with progress(title, job.checkpoint.shape.n_layers) as tick:
            choices = list(job.choices(tick))
        cutter = Cutter(job.checkpoint, job.plans(choices))
        with progress("checking shards", cutter.n_tensors) as tick:
            cutter.validate(tick)
        # First: where the dump cannot be written, there is no checkpoint without it either.
        if args.dump is not None:
            job.dump(args.dump, choices, args.force)
        manifest = _write(args, job, cutter, choices)
    return {**_result(args, cutter, manifest), "seconds": round(time.monotonic() - started, 1)}


def _write(
    args: argparse.Namespace, job: PruneJob, cutter: Cutter, choices: list[LayerChoice]
) -> Manifest:
    with atomic_directory(args.out, args.force) as directory:
        with progress("writing", cutter.n_tensors) as tick:
            files = cutter.write(directory, tick)
        manifest = job.manifest(choices, files)
        write_manifest(directory, manifest)
    return manifest


def _result(args: argparse.Namespace, cutter: Cutter, manifest: Manifest) -> Result:
    reader = cutter.reader
    return {
        "out": str(args.out),
        "method": manifest.method,
        "keep": args.keep,
        "experts": {str(layer): own.n_experts for layer, own in cutter.layouts.items()},
        "condensed": [layer for layer, own in cutter.layouts.items() if own.condensed],
        "loads_in_stock_vllm": not cutter.has_layout,
        "n_routed_experts": cutter.checkpoint.shape.n_routed_experts,
        "kept": {str(layer): kept for layer, kept in manifest.kept.items()},
        "weight_bytes": cutter.weight_bytes,
        "source_weight_bytes": sum(reader.info(name).nbytes for name in reader.names),
        "manifest_digest": manifest.digest(),
    }


def _show(result: Result) -> str:
    share = result["weight_bytes"] / result["source_weight_bytes"]
    held = sorted(set(result["experts"].values()))
    counts = str(held[0]) if len(held) == 1 else f"{held[0]} to {held[-1]}"
    where = "any engine" if result["loads_in_stock_vllm"] else "`leanmoe serve` only"
    return (
        f"kept {counts} of {result['n_routed_experts']} experts per layer by "
        f"{result['method']} in {result['seconds']} s: {result['weight_bytes'] / 1e6:.0f} MB of "
        f"weights, {share:.0%} of the source, in {result['out']}; loads in {where}"
    )


COMMAND = Command(
    name="prune",
    help="Cut experts out of a Mixture-of-Experts checkpoint.",
    example="leanmoe prune ./reference --method naee --keep 5 --scores ./scores -o ./lean",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
