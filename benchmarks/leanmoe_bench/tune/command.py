"""``leanmoe bench tune MODEL``: arguments, the card, and the table for a person."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from leanmoe.checkpoint import open_checkpoint
from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.extras import install_hint
from leanmoe.files.output import TUNED_FOLDER
from leanmoe.process.interrupts import stop_on_signals
from leanmoe.tuned_tables import FOLDER_VARIABLE, recorded_tables
from leanmoe_bench import options
from leanmoe_bench.tune.kernel_shapes import TuneShape, shapes_of
from leanmoe_bench.tune.loop import Bench
from leanmoe_bench.tune.tuning import Place, Wanted, line, run

_BATCHES = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096"
_LIMIT_SECONDS = 1800.0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model's directory")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="for the table")
    parser.add_argument(
        "--into-checkpoint", action="store_true", help="MODEL itself carries the table"
    )
    parser.add_argument("--batch", metavar="1,2,4", help="numbers of tokens (1 to 4096)")
    parser.add_argument("--tp", type=int, default=1, help="ranks an expert is cut into")
    parser.add_argument("--limit", type=float, help="seconds in all (default 1800)")
    options.add_rounds(parser, "turns in which the best tiles are timed")


def wanted_of(args: argparse.Namespace) -> Wanted:
    """The arguments; ``InputError`` for those that cannot be."""
    if args.model is None:
        raise InputError("bench tune measures the shapes of a MODEL; give its directory")
    if args.into_checkpoint == (args.out is not None):
        raise InputError("bench tune writes to -o FOLDER or --into-checkpoint; give one of them")
    limit = _LIMIT_SECONDS if args.limit is None else args.limit
    if not 0 < limit < float("inf"):
        raise InputError(f"--limit is {limit}, expected a number of seconds above 0")
    batches = _batches(args.batch or _BATCHES)
    checkpoint = open_checkpoint(Path(args.model))
    folder = checkpoint.path / TUNED_FOLDER if args.into_checkpoint else args.out
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the table")
    recorded_tables(folder)  # what stands there is right, so that ours can be put beside it
    name = checkpoint.path.resolve().name
    return Wanted(
        checkpoint,
        tuple(shapes_of(checkpoint, args.tp)),
        batches,
        folder,
        limit,
        options.rounds_of(args),
        args.seed,
        f"leanmoe bench tune {name} --tp {args.tp} --batch {','.join(map(str, batches))}",
    )


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 1 <= found[0] <= found[-1] <= 65536:
        raise InputError(f"--batch is {text!r}, expected numbers of tokens such as 1,2,4")
    return tuple(found)


def _run(args: argparse.Namespace) -> Result:
    """One row per shape and batch size."""
    wanted = wanted_of(args)
    try:
        with stop_on_signals():
            return run(wanted, card_place(wanted.seed), time.monotonic)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{wanted.folder} keeps what was measured, and the same command goes on from there"
        ) from None


def card_place(seed: int) -> Place:
    """This machine's card; ``InputError`` where there is none."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # Beside what vLLM chooses by itself, not beside an earlier table.
    os.environ.pop(FOLDER_VARIABLE, None)
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA GPU is to be seen here, and tiles are measured on the card that will use "
            "them; run `leanmoe bench tune` there"
        )
    from leanmoe_bench.tune import card

    if not card.has_gpu():
        raise InputError(f"this vLLM is not built for CUDA; run {install_hint('cuda')}")

    def bench(shape: TuneShape) -> tuple[Bench, int]:
        made = card.ExpertsBench(shape, seed)
        return made, made.shared_bytes

    return Place(card.card_name(), card.VERSIONS, card.TABLES, card.own_choice, bench)


def show(result: Result) -> str:
    """What the chosen tiles gain, a row per shape and batch size."""
    head = (
        f"{result['card']}, vLLM {result['versions']['vllm']}: times as fast as vLLM's own choice, "
        "all assignments kept, then top-1 alone\n"
        " experts batch  tiles"
    )
    missing = [f"cut short by --limit: {one}" for one in result["not_measured"]]
    return "\n".join([head, *(line(row) for row in result["tune"]), *missing])


COMMAND = Command(
    name="bench tune",
    help="Measure which tiles of the experts kernel are the fastest for a model on this card.",
    example="leanmoe bench tune ./lean --into-checkpoint --limit 1800",
    add_arguments=_add_arguments,
    run=_run,
    show=show,
)
