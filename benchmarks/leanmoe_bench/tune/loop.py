"""The measuring loop of one batch size: a first look at many tiles, then the best in turns.

What is timed, and on what, is the caller's: a bench is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from leanmoe.errors import LeanMoEError
from leanmoe.tuned_tables import Tiles
from leanmoe_bench.tune.choice import Kept, Timed
from leanmoe_bench.tune.rows import Finals, RowsFile, Screened

# Who is timed in turns: at level 0 no more than this behind the fastest of the first look.
_NEAR = 0.05
_MOST_FINALISTS = 8
OTHER_BITS = "other bits than vLLM's own choice gives"


class TilesError(Exception):
    """These tiles do not fit the card."""


class Bench(Protocol):
    """Times tiles and compares what they compute; ``TilesError`` where they do not run."""

    def seconds(self, batch: int, tiles: Tiles, kept: Kept) -> float:
        """One timing of one pass through a layer's experts."""

    def same_bits(self, batch: int, tiles: Tiles) -> bool:
        """Whether the result is bit for bit that of vLLM's own choice."""


def measure_batch(
    batch: int,
    candidates: Sequence[Tiles],
    bench: Bench,
    rows: RowsFile,
    time_left: Callable[[], bool],
    rounds: int,
) -> Finals | None:
    """The finals at ``batch``; ``candidates`` begin with vLLM's own choice.

    What ``rows`` holds is not measured again. ``None`` where the time was up before vLLM's own
    choice had been looked at.
    """
    known, before = rows.screened(batch), len(rows.screened(batch))
    for tiles in candidates:
        if tiles in known:
            continue
        if not time_left():
            break
        rows.add_screened(batch, _look(batch, tiles, bench))
        known = rows.screened(batch)
    found, own = rows.finals(batch), candidates[0]
    if own not in known or (found is not None and len(known) == before):
        return found
    timed = _in_turns(batch, _finalists(known, own), bench, rounds)
    tried = sum(tiles in known for tiles in candidates)
    found = Finals(timed, own, tried, len(candidates))
    rows.add_finals(batch, found)
    return found


def _look(batch: int, tiles: Tiles, bench: Bench) -> Screened:
    try:
        if not bench.same_bits(batch, tiles):
            return Screened(tiles, out=OTHER_BITS)
        return Screened(tiles, {kept: bench.seconds(batch, tiles, kept) for kept in Kept})
    except TilesError as error:
        return Screened(tiles, out=str(error) or "does not run")


def _finalists(known: Mapping[Tiles, Screened], own: Tiles) -> list[Tiles]:
    """vLLM's own choice, the fastest at level 0, and the fastest with top-1 of those near it."""
    seconds = {tiles: one.seconds for tiles, one in known.items() if one.seconds is not None}
    if own not in seconds:
        raise LeanMoEError(f"vLLM's own tiles {own.keys()} do not run here: {known[own].out}")
    fastest = min(seconds, key=lambda tiles: seconds[tiles][Kept.ALL])
    limit = seconds[fastest][Kept.ALL] * (1 + _NEAR)
    near = [tiles for tiles, found in seconds.items() if found[Kept.ALL] <= limit]
    near.sort(key=lambda tiles: seconds[tiles][Kept.TOP1])
    return list(dict.fromkeys([own, fastest, *near]))[:_MOST_FINALISTS]


def _in_turns(
    batch: int, finalists: Sequence[Tiles], bench: Bench, rounds: int
) -> tuple[Timed, ...]:
    """Every round times all of them, forwards and backwards by turns."""
    found: dict[Tiles, dict[Kept, list[float]]] = {
        tiles: {kept: [] for kept in Kept} for tiles in finalists
    }
    for number in range(rounds):
        for kept in Kept:
            for tiles in finalists if number % 2 == 0 else reversed(finalists):
                found[tiles][kept].append(bench.seconds(batch, tiles, kept))
    return tuple(
        Timed(tiles, {kept: tuple(values) for kept, values in seconds.items()})
        for tiles, seconds in found.items()
    )
