"""``leanmoe eval``: perplexity per domain, and the distance from another model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.command import Command, Result
from leanmoe.errors import CheckpointError
from leanmoe.interrupts import stop_on_signals
from leanmoe.policy import check_level, resolve_betas
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.commands.options import add_compute, add_data, add_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress
from leanmoe_pruning.quality.evaluate import domain_report, domain_sums, forward
from leanmoe_pruning.quality.levels import LevelPass


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL2",
        help="also give KL(MODEL2 || MODEL) and top-1 agreement",
    )
    parser.add_argument(
        "--skip-level", type=float, default=0.0, metavar="L", help="skip level of MODEL (default 0)"
    )
    add_compute(parser)


def _pass(checkpoint: Checkpoint, data: DataSet, level: float, compute: str | None) -> LevelPass:
    stream = DecoderStream(checkpoint, compute)
    curve = checkpoint.manifest.curve if checkpoint.manifest else None
    betas = resolve_betas(level, checkpoint.skip_layers, curve)
    with progress(f"{checkpoint.path.name}: layers", stream.n_layers) as tick:
        return forward(stream, data, betas, tick)


def _open_other(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    other = open_runnable_model(path)
    mine, theirs = checkpoint.config["vocab_size"], other.config["vocab_size"]
    if mine != theirs:
        raise CheckpointError(
            f"{path} has a vocabulary of {theirs} and {checkpoint.path} one of {mine}; "
            "only models of one vocabulary can be compared"
        )
    return other


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    check_level(args.skip_level, "--skip-level")
    checkpoint = open_runnable_model(args.model)
    other = _open_other(args.against, checkpoint) if args.against else None
    data = load_data(args.data, checkpoint, "heldout", window=args.window)
    with stop_on_signals():
        run = _pass(checkpoint, data, args.skip_level, args.compute)
        against = _pass(other, data, 0.0, args.compute) if other else None
        with progress("windows", data.windows) as tick:
            sums = domain_sums(run, against, data, tick)
    return {
        "model": str(args.model),
        "against": str(args.against) if args.against else None,
        "skip_level": args.skip_level,
        "skip_rate": run.skip_rate(0),
        "domains": {name: domain_report(found) for name, found in sums.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


def _show(result: Result) -> str:
    lines = ["domain        perplexity        95 % interval   tokens"]
    for name, found in result["domains"].items():
        interval = f"{found['low']:.3f} .. {found['high']:.3f}" if found["low"] else "one window"
        line = f"{name:12}  {found['perplexity']:10.3f}  {interval:>19}  {found['tokens']:7}"
        if "kld" in found:
            line += f"   KLD {found['kld']:.5f}   top-1 same {found['top1_agreement']:.1%}"
        lines.append(line)
    return "\n".join(lines)


COMMAND = Command(
    name="eval",
    help="Perplexity per domain on held-out text, alone or against another model.",
    example="leanmoe eval ./lean --against ./reference --data builtin:gen:8,builtin:fr:8",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
