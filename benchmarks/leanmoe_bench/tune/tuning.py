"""Measures tables of tiles, shape by shape, written where an engine finds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import LeanMoEError
from leanmoe.manifest import experts_before
from leanmoe.tuned_tables import (
    Table,
    TableName,
    Tiles,
    card_in_file_names,
    put_table,
    read_table,
    tables_of,
)
from leanmoe_bench.tune.choice import Kept, choose, gain
from leanmoe_bench.tune.filling import OwnChoice, whole_table
from leanmoe_bench.tune.kernel_shapes import TuneShape
from leanmoe_bench.tune.loop import OTHER_BITS, Bench, measure_batch
from leanmoe_bench.tune.rows import Finals, RowsFile
from leanmoe_bench.tune.space import candidates

Clock = Callable[[], float]


@dataclass(frozen=True)
class Wanted:
    """What was asked for, found to be possible as far as it can be without a card."""

    checkpoint: Checkpoint
    shapes: tuple[TuneShape, ...]
    batches: tuple[int, ...]
    folder: Path
    limit: float
    rounds: int
    seed: int
    command: str


@dataclass(frozen=True)
class Place:
    """The card tiles are measured on, and what of vLLM is there."""

    card: str
    versions: dict[str, str]
    tables: Path
    own: Callable[[TuneShape, int], Tiles]
    bench: Callable[[TuneShape], tuple[Bench, int]]


def run(wanted: Wanted, place: Place, clock: Clock) -> dict[str, Any]:
    """Measure every shape at every batch size within the limit; write a table per shape."""
    end = clock() + wanted.limit
    rows: list[dict[str, Any]] = []
    left = [(shape, batch) for shape in wanted.shapes for batch in wanted.batches]
    for shape in wanted.shapes:
        for row in _tune(shape, wanted, place, clock, end, left):
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    if not rows:
        raise LeanMoEError(
            f"--limit {wanted.limit:g} was over before anything was measured; give more seconds"
        )
    return {
        "card": place.card,
        "versions": place.versions,
        "tune": rows,
        "not_measured": _missing(wanted, rows),
    }


def _missing(wanted: Wanted, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which sizes the limit left out, and where it cut the search short."""
    found = {(row["experts"], row["batch"]): row for row in rows}
    return [
        f"{shape.experts} experts, batch {batch}: "
        + (f"{row['tried']} of {row['among']} tiles" if row else "nothing")
        for shape in wanted.shapes
        for batch in wanted.batches
        if (row := found.get((shape.experts, batch))) is None or row["tried"] < row["among"]
    ]


def _tune(
    shape: TuneShape,
    wanted: Wanted,
    place: Place,
    clock: Clock,
    end: float,
    left: list[tuple[TuneShape, int]],
) -> Iterator[dict[str, Any]]:
    name = shape.table(card_in_file_names(place.card))
    subject = {"card": place.card, **place.versions, "shape": asdict(shape)}
    rows = RowsFile(wanted.folder / f"{name.file.removesuffix('.json')}.jsonl", _plain(subject))
    before = _table_before(wanted.checkpoint, name, place)
    elsewhere = cache(partial(_without_this, shape, before, place))
    bench, shared = place.bench(shape)
    measured = {batch: choose(one.timed).tiles for batch, one in rows.all_finals.items()}
    for batch in wanted.batches:
        own, now = place.own(shape, batch), clock()
        others = [_nearest(before, batch)] if before else []
        found = measure_batch(
            batch,
            candidates(shape, batch, own, others, shared),
            bench,
            rows,
            partial(_is_before, now + (end - now) / len(left), clock),
            wanted.rounds,
        )
        left.remove((shape, batch))
        if found is None:
            continue
        measured[batch] = choose(found.timed).tiles
        _write(name, measured, elsewhere, wanted, place)
        yield _row(name, shape, batch, found, rows)


def _is_before(end: float, clock: Clock) -> bool:
    return clock() < end


def _plain(subject: dict[str, Any]) -> dict[str, Any]:
    """As it will be read again: JSON has no tuples."""
    shape = subject["shape"]
    block = shape["weights"]["block_shape"]
    weights = {**shape["weights"], "block_shape": list(block) if block else None}
    return {**subject, "shape": {**shape, "weights": weights}}


def _table_before(checkpoint: Checkpoint, name: TableName, place: Place) -> Table | None:
    """The table ``leanmoe serve`` would hand on: vLLM's of the shape before the cut."""
    if name in tables_of(place.tables, name.experts, name.width, name.card):
        return None
    for count in experts_before(checkpoint.manifest):
        source = name.of(count)
        if count > name.experts and (place.tables / source.file).is_file():
            return read_table(place.tables / source.file)
    return None


def _nearest(table: Table, batch: int) -> Tiles:
    """The row vLLM takes."""
    return table[min(table, key=lambda one: abs(one - batch))]


def _write(
    name: TableName,
    measured: dict[int, Tiles],
    elsewhere: OwnChoice,
    wanted: Wanted,
    place: Place,
) -> None:
    """After every size: an interrupt leaves a whole table of what was measured until then."""

    record = {
        "card": place.card,
        "vllm": place.versions["vllm"],
        "triton": place.versions["triton"],
        "date": datetime.now(UTC).date().isoformat(),
        "command": wanted.command,
        "batches": sorted(measured),
    }
    put_table(wanted.folder, name, whole_table(measured, elsewhere, name.experts), record)


def _without_this(shape: TuneShape, before: Table | None, place: Place, batch: int) -> Tiles:
    """What the engine would take if this table were not."""
    return _nearest(before, batch) if before else place.own(shape, batch)


def _row(
    name: TableName, shape: TuneShape, batch: int, found: Finals, rows: RowsFile
) -> dict[str, Any]:
    chosen = choose(found.timed)
    (own,) = [one for one in found.timed if one.tiles == found.own]
    outs = [one.out for one in rows.screened(batch).values() if one.out is not None]
    row: dict[str, Any] = {
        "table": name.file,
        "experts": shape.experts,
        "batch": batch,
        "tiles": chosen.tiles.keys(),
        "own": own.tiles.keys(),
        "tried": found.tried,
        "among": found.among,
        "other_bits": outs.count(OTHER_BITS),
        "not_running": len(outs) - outs.count(OTHER_BITS),
    }
    for kept in Kept:
        ratio = gain(chosen, own, kept)
        row[kept.value] = {
            "ratio": ratio.middle,
            "low": ratio.low,
            "high": ratio.high,
            "own_us": own.middle(kept) * 1e6,
            "us": chosen.middle(kept) * 1e6,
        }
    return row


def line(row: dict[str, Any]) -> str:
    """One row for a person: what the chosen tiles gain over vLLM's own choice."""
    tiles = row["tiles"]
    short = "x".join(str(tiles[f"BLOCK_SIZE_{letter}"]) for letter in "MNK")
    more = f"group {tiles['GROUP_SIZE_M']} warps {tiles['num_warps']} stages {tiles['num_stages']}"
    gains = "  ".join(
        f"{row[kept]['ratio']:.3f} ({row[kept]['low']:.3f} to {row[kept]['high']:.3f}), "
        f"{row[kept]['us']:.1f} us"
        for kept in ("all", "top1")
    )
    tried = f"{row['tried']} of {row['among']} tiles"
    return f"{row['experts']:>4} {row['batch']:>6}  {short:12} {more:28} {gains}  {tried}"
