"""The rows of a tuning run: written as they come, read again when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, OutputError
from leanmoe.files.digest import parse_json
from leanmoe.tuned_tables import Tiles
from leanmoe_bench.tune.choice import Kept, Timed


@dataclass(frozen=True)
class Screened:
    """One quick look at some tiles: their seconds, or why they are out."""

    tiles: Tiles
    seconds: dict[Kept, float] | None = None
    out: str | None = None


@dataclass(frozen=True)
class Finals:
    """What was timed in turns at a batch size; ``tried`` of ``among`` tiles had a first look."""

    timed: tuple[Timed, ...]
    own: Tiles
    tried: int
    among: int


class RowsFile:
    """A file of JSON lines; the first says what is measured, on what."""

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        self._path = path
        self._screened: dict[int, dict[Tiles, Screened]] = {}
        self._finals: dict[int, Finals] = {}
        try:
            if path.exists():
                self._read(subject)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append({"subject": dict(subject)})
        except OSError as error:
            raise OutputError(f"could not write {path}: {error.strerror or error}") from error

    def screened(self, batch: int) -> Mapping[Tiles, Screened]:
        return self._screened.get(batch, {})

    @property
    def all_finals(self) -> Mapping[int, Finals]:
        """By batch size, those of earlier runs among them."""
        return self._finals

    def finals(self, batch: int) -> Finals | None:
        return self._finals.get(batch)

    def add_screened(self, batch: int, found: Screened) -> None:
        row = {"batch": batch, "tiles": found.tiles.keys()}
        self._append(row | ({"out": found.out} if found.out else {"seconds": found.seconds}))
        self._screened.setdefault(batch, {})[found.tiles] = found

    def add_finals(self, batch: int, found: Finals) -> None:
        timed = [{"tiles": one.tiles.keys(), "seconds": one.seconds} for one in found.timed]
        own, counts = found.own.keys(), {"tried": found.tried, "among": found.among}
        self._append({"batch": batch, "own": own, "finals": timed, **counts})
        self._finals[batch] = found

    def _append(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self, subject: Mapping[str, Any]) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        try:
            first, *rows = [parse_json(line) for line in whole.splitlines()]
            found = first["subject"]
            for row in rows:
                self._take(row)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._path} does not hold rows of bench tune ({error}); remove it or choose "
                "another folder"
            ) from None
        differing = [key for key in subject if found.get(key) != subject[key]]
        if differing:
            was = ", ".join(f"{key} {found.get(key)!r}" for key in differing)
            now = ", ".join(f"{key} {subject[key]!r}" for key in differing)
            raise InputError(
                f"{self._path} was measured with {was} and this run has {now}; remove it or "
                "choose another folder"
            )
        if whole != text:  # a row that an interrupt cut short
            self._path.write_text(whole, encoding="utf-8")

    def _take(self, row: Mapping[str, Any]) -> None:
        batch = int(row["batch"])
        if "finals" in row:
            timed = tuple(
                Timed(
                    Tiles(**one["tiles"]),
                    {Kept(kept): tuple(values) for kept, values in one["seconds"].items()},
                )
                for one in row["finals"]
            )
            self._finals[batch] = Finals(timed, Tiles(**row["own"]), row["tried"], row["among"])
            return
        tiles, seconds = Tiles(**row["tiles"]), row.get("seconds")
        read = seconds and {Kept(kept): float(value) for kept, value in seconds.items()}
        self._screened.setdefault(batch, {})[tiles] = Screened(tiles, read, row.get("out"))
