"""NAEE's options: the batches of the loss and how subsets are searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.methods.naee.subsets import Search
from leanmoe_pruning.methods.selection import ENUMERATED_UP_TO, check_enumerable
from leanmoe_pruning.options import option

DEFAULT_BATCH = 8
MAX_BATCH = 1_000_000
DEFAULT_WIDTH = 4
MAX_WIDTH = 64


@dataclass(frozen=True)
class NaeeOptions:
    """The options of ``--method naee``."""

    batch_size: int = option(
        f"windows per batch of the loss (default {DEFAULT_BATCH})",
        default=DEFAULT_BATCH,
        metavar="WINDOWS",
        within=(1, MAX_BATCH),
    )
    search: str = option(
        "try every subset, or remove experts one by one and improve by swaps; auto (default) "
        f"tries every subset of up to {ENUMERATED_UP_TO} experts and is greedy beyond",
        default="auto",
        choices=("auto", "enumerate", "greedy", "beam"),
    )
    beam_width: int | None = option(
        f"--search beam: sets carried along (default {DEFAULT_WIDTH})", metavar="SETS"
    )


def search_of(options: NaeeOptions, shape: MoEShape, keeps: Sequence[int]) -> Search:
    """How to look for the subsets of each size in ``keeps``; raise where they are too many."""
    if options.beam_width is not None and options.search != "beam":
        raise InputError(f"--beam-width is for --search beam, not {options.search}; drop one")
    few = shape.n_routed_experts <= ENUMERATED_UP_TO
    if options.search == "enumerate" or (options.search == "auto" and few):
        for keep in keeps:
            check_enumerable(keep, shape)
        return Search("enumerate")
    if options.search != "beam":
        return Search("greedy")
    width = DEFAULT_WIDTH if options.beam_width is None else options.beam_width
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
        f"{how} and then swapped kept for pruned ones until no single swap lowered the "
        "loss, so each layer's subset may not be the best one",
    )
