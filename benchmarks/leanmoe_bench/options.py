"""Options that several benches share: their words, their checks, the folder they work in."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanmoe.errors import InputError
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_bench.shapes import SHAPES, Shape


def add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="M", help="M (default), F, R or tiny")


def add_case(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--case", action="append", help=words)


def add_rounds(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--rounds", type=int, default=8, help=words)


def add_work(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--work", type=Path, metavar="DIR", help=words)


def shape_of(args: argparse.Namespace) -> Shape:
    """The shape of that name; ``InputError`` where there is none."""
    if args.shape not in SHAPES:
        raise InputError(f"no shape {args.shape!r}; expected one of {', '.join(SHAPES)}")
    return SHAPES[args.shape]


def rounds_of(args: argparse.Namespace) -> int:
    """Enough that each engine was first once; ``InputError`` otherwise."""
    if args.rounds < 2:
        raise InputError(f"--rounds is {args.rounds}, expected at least 2: one per engine order")
    return int(args.rounds)


@contextmanager
def work_folder(given: Path | None = None) -> Iterator[Path]:
    """The folder that was given, or one that is gone after the block, which signals end cleanly."""
    with stop_on_signals(), tempfile.TemporaryDirectory(prefix="leanmoe-bench-") as temporary:
        work = given or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        yield work
