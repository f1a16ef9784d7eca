"""NAEE's options: the batches of the loss and how subsets are searched."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.methods.naee.search import Search
from leanmoe_pruning.methods.selection import check_enumerable

DEFAULT_BATCH = 8
MAX_BATCH = 1_000_000
ENUMERATED_UP_TO = 12  # experts
DEFAULT_WIDTH = 4
MAX_WIDTH = 64


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """The options of ``--method naee``."""
    group.add_argument(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH,
        metavar="WINDOWS",
        help=f"windows per batch of the loss (default {DEFAULT_BATCH})",
    )
    group.add_argument(
        "--search",
        choices=["auto", "enumerate", "greedy", "beam"],
        default="auto",
        help="try every subset, or remove experts one by one and improve by swaps; auto (default) "
        f"tries every subset of up to {ENUMERATED_UP_TO} experts and is greedy beyond",
    )
    group.add_argument(
        "--beam-width",
        type=int,
        metavar="SETS",
        help=f"--search beam: sets carried along (default {DEFAULT_WIDTH})",
    )


def check_batch_size(size: int) -> None:
    """Raise unless it is a number of windows."""
    if not 1 <= size <= MAX_BATCH:
        raise InputError(f"--batch-size is {size}, expected a number from 1 to {MAX_BATCH}")


def search_of(args: argparse.Namespace, shape: MoEShape, keeps: Sequence[int]) -> Search:
    """How to look for the subsets of each size in ``keeps``; raise where they are too many."""
    if args.beam_width is not None and args.search != "beam":
        raise InputError(f"--beam-width is for --search beam, not {args.search}; drop one")
    few = shape.n_routed_experts <= ENUMERATED_UP_TO
    if args.search == "enumerate" or (args.search == "auto" and few):
        for keep in keeps:
            check_enumerable(keep, shape)
        return Search("enumerate")
    if args.search != "beam":
        return Search("greedy")
    width = DEFAULT_WIDTH if args.beam_width is None else args.beam_width
    if not 1 <= width <= MAX_WIDTH:
        raise InputError(f"--beam-width is {width}, expected a number from 1 to {MAX_WIDTH}")
    return Search("beam", width)


def search_settings(search: Search) -> dict[str, Any]:
    """What the manifest records."""
    width = {"beam_width": search.width} if search.kind == "beam" else {}
    return {"search": search.kind, **width}


def search_notes(search: Search, shape: MoEShape) -> tuple[str, ...]:
    """What the user should know of it."""
    if search.kind == "enumerate":
        return ()
    how = "greedily" if search.kind == "greedy" else f"by a beam of {search.width} sets"
    return (
        f"naee did not try every subset of {shape.n_routed_experts} experts: it removed experts "
        f"{how} and then swapped kept for dropped ones until no single swap lowered the "
        "loss, so each layer's subset may not be the best one",
    )
