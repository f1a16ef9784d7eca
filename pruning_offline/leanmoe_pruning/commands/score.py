"""``leanmoe score``: one pass over data, statistics for every selection method."""

from __future__ import annotations

import argparse
import time

import torch

from leanmoe.command import Command, Result
from leanmoe.files.output import check_output
from leanmoe.files.resuming import resumable_directory
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import check_uniform, open_runnable_model, source_digests
from leanmoe_pruning.commands.options import add_compute, add_data, add_model, add_output
from leanmoe_pruning.data import load_data
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.bundle import BundleDescription, complete_bundle, describe
from leanmoe_pruning.scores.passing import sampled_tokens, score_into
from leanmoe_pruning.scores.sampling import ALL_TOKENS_UP_TO, MOST_TOKENS


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument(
        "--gram-tokens",
        type=int,
        metavar="N",
        help=f"with more than {ALL_TOKENS_UP_TO} experts per layer: tokens, evenly spaced, whose "
        f"expert outputs naee compares (default: up to {MOST_TOKENS}, fewer with very many "
        "experts)",
    )
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
    sampled = sampled_tokens(stream, data.ids, args.gram_tokens)
    source = source_digests(args.model)
    described = describe(checkpoint, source, data, stream.compute, len(sampled))
    with (
        stop_on_signals(),
        resumable_directory(args.out, _key(described), args.force) as unfinished,
        progress("scoring layers", stream.n_layers) as tick,
    ):
        resumed = unfinished.step
        score_into(unfinished, stream, data.ids, sampled, tick)
        found = complete_bundle(unfinished.output, described, unfinished.finished())
    return {
        "out": str(args.out),
        "digest": found.digest(),
        "tokens": data.tokens,
        "gram_tokens": found.gram_tokens,
        "layers": len(found.moe_layers),
        "layers_resumed": resumed,
        "seconds": round(time.monotonic() - started, 1),
    }


def _key(described: BundleDescription) -> str:
    return described.digest().removeprefix("sha256:")[:12]


def _show(result: Result) -> str:
    resumed = result["layers_resumed"]
    before = f", {resumed} finished by an earlier run," if resumed else ""
    return (
        f"scored {result['layers']} layers{before} on {result['tokens']} tokens in "
        f"{result['seconds']} s: {result['out']}"
    )


COMMAND = Command(
    name="score",
    help="Run data through a model once and keep the statistics every pruning method needs.",
    example="leanmoe score ./reference --data builtin:gen:4,builtin:c:4 -o ./scores",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
