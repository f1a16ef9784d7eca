"""``leanmoe score``: one pass over data, statistics for every selection method."""

from __future__ import annotations

import argparse
import time

import torch

from leanmoe.command import Command, Result
from leanmoe.interrupts import stop_on_signals
from leanmoe.provenance import atomic_directory, check_output
from leanmoe_pruning.checkpoints.opening import check_uniform, open_runnable_model, source_digests
from leanmoe_pruning.commands.options import add_compute, add_data, add_model, add_output
from leanmoe_pruning.data import load_data
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.bundle import write_bundle
from leanmoe_pruning.scores.passing import score_layers


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    add_compute(parser)
    add_output(parser, "score bundle directory to write")


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    check_output(args.out, args.force, [args.model])
    checkpoint = open_runnable_model(args.model)
    check_uniform(checkpoint)
    data = load_data(args.data, checkpoint, "calibration", window=args.window)
    stream = DecoderStream(checkpoint, args.compute)
    source = source_digests(args.model)
    with (
        stop_on_signals(),
        atomic_directory(args.out, args.force) as directory,
        progress("scoring layers", stream.n_layers) as tick,
    ):
        layers = score_layers(stream, data.ids, tick)
        found = write_bundle(directory, checkpoint, source, data, layers, stream.compute)
    return {
        "out": str(args.out),
        "digest": found.digest(),
        "tokens": data.tokens,
        "layers": len(found.moe_layers),
        "seconds": round(time.monotonic() - started, 1),
    }


def _show(result: Result) -> str:
    return (
        f"scored {result['layers']} layers on {result['tokens']} tokens in {result['seconds']} s: "
        f"{result['out']}"
    )


COMMAND = Command(
    name="score",
    help="Run data through a model once and keep the statistics every pruning method needs.",
    example="leanmoe score ./reference --data builtin:gen:4,builtin:c:4 -o ./scores",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
