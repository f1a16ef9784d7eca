"""vLLM's tuned tables: the tiles its fused experts kernel takes at each number of tokens.

vLLM finds a table by its file name alone, which says what it was measured for: experts and
width of one rank, weights, card. A checkpoint may carry tables, in a folder of its own, beside a
record of where they were measured. The manifest does not name them: they change no weight, are
made after the cut on whichever card is at hand, and the record holds a digest of each.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveInt,
    TypeAdapter,
    model_validator,
)

from leanmoe.errors import CheckpointError, InputError
from leanmoe.files.digest import bytes_digest, parse_json
from leanmoe.files.output import TUNED_FOLDER, atomic_write_json, atomic_write_text
from leanmoe.files.records import One, read_record, what_is_wrong

_LOG = logging.getLogger(__name__)

RECORD_NAME = "record.json"
# What vLLM reads a folder of tables from, before its own.
FOLDER_VARIABLE = "VLLM_TUNED_CONFIG_FOLDER"

_NAME = re.compile(
    r"E=(?P<experts>\d+),N=(?P<width>\d+),device_name=(?P<card>[^,]+?)"
    r"(?:,dtype=(?P<dtype>[a-z0-9_]+))?"
    r"(?:,block_shape=\[(?P<block_n>\d+),(?P<block_k>\d+)\])?\.json"
)


def card_in_file_names(name: str) -> str:
    """A card as vLLM writes it into names of tables: all of the H200's kin are one."""
    written = re.sub(r"[\s/]+", "_", name)
    return "NVIDIA_H200" if "H200" in written.split("_") else written


@dataclass(frozen=True)
class TableName:
    """What a table was measured for; ``width`` is the FFN of an expert on one rank."""

    experts: int
    width: int
    card: str
    dtype: str | None = None
    block_shape: tuple[int, int] | None = None

    @classmethod
    def parse(cls, file: str) -> TableName | None:
        """``None`` for the name of anything else."""
        found = _NAME.fullmatch(file)
        if found is None:
            return None
        block = found["block_n"] and (int(found["block_n"]), int(found["block_k"]))
        return cls(
            int(found["experts"]), int(found["width"]), found["card"], found["dtype"], block or None
        )

    @property
    def file(self) -> str:
        """As vLLM's ``get_config_file_name`` writes it."""
        dtype = f",dtype={self.dtype}" if self.dtype else ""
        block = self.block_shape
        shape = f",block_shape=[{block[0]},{block[1]}]" if block and all(block) else ""
        return f"E={self.experts},N={self.width},device_name={self.card}{dtype}{shape}.json"

    @property
    def weights(self) -> str:
        """The kind of weights, for people."""
        kind, block = self.dtype or "bf16 or fp16", self.block_shape
        return f"{kind} in blocks of {block[0]}x{block[1]}" if block else kind

    def of(self, experts: int) -> TableName:
        """The same card, width and weights for another number of experts."""
        return replace(self, experts=experts)


class Tiles(BaseModel):
    """How the kernel divides its work at one number of tokens; the fields are vLLM's keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    BLOCK_SIZE_M: PositiveInt
    BLOCK_SIZE_N: PositiveInt
    BLOCK_SIZE_K: PositiveInt
    GROUP_SIZE_M: PositiveInt
    num_warps: PositiveInt
    num_stages: PositiveInt
    num_ctas: PositiveInt | None = None
    # vLLM's kernel sets it to 1 whatever a table says.
    SPLIT_K: One | None = None

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} is {value}, and Triton takes powers of two alone")
        return self

    def keys(self) -> dict[str, int]:
        """As a table states them."""
        return self.model_dump(exclude_none=True)


Table = dict[int, Tiles]
_TABLE = TypeAdapter(dict[PositiveInt, Tiles])


def parse_table(text: str, where: str) -> Table:
    """A table's rows by number of tokens; ``InputError`` says what is wrong with the file."""
    try:
        content = parse_json(text)
        if isinstance(content, dict):
            content.pop("triton_version", None)
        table = _TABLE.validate_python(content)
    except ValueError as error:
        reason = what_is_wrong(error, "the file")
        raise InputError(f"{where} is not one of vLLM's tuned tables: {reason}") from None
    if not table:
        raise InputError(f"{where} is a tuned table without a row; measure it again")
    return table


def table_text(table: Mapping[int, Tiles]) -> str:
    """A table as vLLM's own files are written."""
    rows = {str(batch): table[batch].keys() for batch in sorted(table)}
    return json.dumps(rows, indent=4) + "\n"


def read_table(path: Path) -> Table:
    """The table in a file; ``InputError`` says what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the tuned table {path} cannot be read: {error}") from None
    return parse_table(text, str(path))


class TableRecord(BaseModel):
    """Where one table was measured."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    card: str
    vllm: str
    triton: str
    date: str
    command: str
    batches: list[PositiveInt]


class TunedRecord(BaseModel):
    """``record.json`` of a folder of tables, by file name."""

    model_config = ConfigDict(extra="forbid")

    schema_version: One = 1
    tables: dict[str, TableRecord]


@dataclass(frozen=True)
class RecordedTable:
    """A table of a folder with its record, both found to be right."""

    name: TableName
    path: Path
    record: TableRecord


def _read_record(folder: Path) -> TunedRecord:
    path = folder / RECORD_NAME
    if not path.exists():
        return TunedRecord(tables={})
    try:
        return read_record(TunedRecord, parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is no record of tuned tables ({what_is_wrong(error)}); remove the folder or "
            "measure again"
        ) from None


def _checked(path: Path, record: TunedRecord) -> RecordedTable:
    name, own = TableName.parse(path.name), record.tables.get(path.name)
    if name is None or own is None:
        raise CheckpointError(
            f"{path} has no entry in {RECORD_NAME} beside it; remove it, or measure the table "
            "with `leanmoe bench tune`"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing and {RECORD_NAME} names it; copy it again")
    found = bytes_digest([path.read_bytes()])
    if found != own.digest:
        raise CheckpointError(
            f"{path} does not match {RECORD_NAME} (found {found}, expected {own.digest}): it was "
            "changed or damaged; copy it again or remove both"
        )
    read_table(path)
    return RecordedTable(name, path, own)


def recorded_tables(folder: Path) -> list[RecordedTable]:
    """The tables of ``folder``; ``CheckpointError`` where one is not what its record says."""
    if not folder.is_dir():
        return []
    record = _read_record(folder)
    lying = {path.name for path in folder.glob("*.json")} - {RECORD_NAME}
    return [_checked(folder / Path(name).name, record) for name in sorted({*lying, *record.tables})]


def put_table(
    folder: Path, name: TableName, table: Mapping[int, Tiles], record: Mapping[str, Any]
) -> Path:
    """Write a table and its entry in the record; other files of the folder stay."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table_text(table)
    own = TableRecord(digest=bytes_digest([text.encode()]), **record)
    known = _read_record(folder)
    atomic_write_text(folder / name.file, text)
    _write_record(folder, {**known.tables, name.file: own})
    return folder / name.file


def _write_record(folder: Path, tables: Mapping[str, TableRecord]) -> None:
    record = TunedRecord(tables=dict(sorted(tables.items())))
    atomic_write_json(folder / RECORD_NAME, record.model_dump(mode="json"))


def carry_tables(source: Path, target: Path, counts: Collection[int]) -> list[str]:
    """Copy those tables of checkpoint ``source`` to ``target`` that fit its ``counts`` of experts.

    A folder that is not what its record says is left behind with a warning: it may not end a cut.
    """
    try:
        found = recorded_tables(source / TUNED_FOLDER)
    except InputError as error:
        _LOG.warning("tuned tables are not carried over: %s", error)
        return []
    fitting = [one for one in found if one.name.experts in counts]
    if fitting:
        folder = target / TUNED_FOLDER
        folder.mkdir()
        for one in fitting:
            shutil.copyfile(one.path, folder / one.path.name)
        _write_record(folder, {one.path.name: one.record for one in fitting})
    return [one.path.name for one in fitting]


def tables_of(folder: Path, experts: int, width: int, card: str) -> Iterator[TableName]:
    """Names of the tables in ``folder`` for that shape and card, whatever the weights."""
    names = (TableName.parse(path.name) for path in folder.glob(f"E={experts},N={width},*.json"))
    found = [one for one in names if one is not None and one.card == card]
    yield from sorted(found, key=lambda one: one.file)
