"""The folder of tuned tables an engine reads: given, carried by the checkpoint, or handed on.

vLLM names its tables by expert count, so a pruned layer finds none and falls back to untuned
tiles, although a table for the experts before the cut is of the same card and the same width. The
table given by name comes first, then the checkpoint's own, then vLLM's
for this shape, then vLLM's for the shape before the cut.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.files.output import TUNED_FOLDER
from leanmoe.manifest import experts_before
from leanmoe.tuned_tables import (
    FOLDER_VARIABLE,
    RecordedTable,
    TableName,
    read_table,
    recorded_tables,
    tables_of,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineShape:
    """What an engine on CUDA will look for.

    ``tensor`` ranks hold a slice of each expert, ``expert`` ranks a share of the experts;
    ``dtype`` and ``quantization`` are vLLM's arguments; ``ignores`` says why this engine reads no
    tables, where it does not.
    """

    card: str
    tables: Path
    tensor: int = 1
    expert: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    ignores: str | None = None

    def local_counts(self, experts: int) -> list[int]:
        """How many of a layer's experts a rank holds; two numbers where they do not divide."""
        return sorted({experts // self.expert, -(-experts // self.expert)} - {0})


@dataclass(frozen=True)
class TableSources:
    """A checkpoint, its tables and those the user gave by name; all were read and are tables."""

    checkpoint: Checkpoint
    given: Mapping[TableName, Path]
    carried: tuple[RecordedTable, ...]

    @property
    def counts(self) -> list[int]:
        """Experts of the MoE layers, each number once; layers without any left out."""
        return sorted({own.n_experts for own in self.checkpoint.layers.values()} - {0})

    def asked_for(self, engine: EngineShape, name: TableName) -> TableName | None:
        """The table of ``name``'s shape that the engine will open, where that is sure."""
        stored = self.checkpoint.config.get("quantization_config")
        if engine.quantization is None and stored is None:
            is_float32 = engine.dtype in ("float", "float32")
            return replace(name, dtype="float32" if is_float32 else None)
        if stored is None or engine.quantization not in (None, "fp8"):
            return None
        block = stored.get("weight_block_size")
        if stored.get("quant_method") == "fp8" and block:
            return replace(name, dtype="fp8_w8a8", block_shape=tuple(block))
        return None

    @property
    def was_cut(self) -> bool:
        manifest = self.checkpoint.manifest
        return manifest is not None and manifest.source is not None


def read_sources(checkpoint: Checkpoint, files: Sequence[Path]) -> TableSources:
    """What can be known wrong before there is an engine; ``InputError`` says it."""
    sources = TableSources(
        checkpoint,
        dict(_given(file) for file in files),
        tuple(recorded_tables(checkpoint.path / TUNED_FOLDER)),
    )
    width = checkpoint.shape.expert_ffn_size
    for name, file in sources.given.items():
        if width % name.width or name.experts > max(sources.counts, default=0):
            raise InputError(
                f"--tuned-table {file} is for {name.experts} experts of width {name.width}, and "
                f"{checkpoint.path} has layers of {_listed(sources.counts)} of width {width}; give "
                "the table of this model"
            )
    return sources


def _given(file: Path) -> tuple[TableName, Path]:
    name = TableName.parse(file.name)
    if name is None:
        raise InputError(
            f"--tuned-table {file} is not named as vLLM names its tables: expected "
            "E=…,N=…,device_name=….json, with the weights where they are not bf16 or fp16"
        )
    read_table(file)
    return name, file


class _Choice:
    """``files``: file name -> where the table comes from; ``said``: what the log is told of it."""

    def __init__(self, sources: TableSources, engine: EngineShape) -> None:
        self.sources, self.engine = sources, engine
        self.width = sources.checkpoint.shape.expert_ffn_size // engine.tensor
        self.files: dict[str, Path] = {}
        self.said: list[tuple[int, str]] = []
        counts = {n: whole for whole in sources.counts for n in engine.local_counts(whole)}
        self._take_given(set(counts))
        self._take_carried(set(counts))
        for local, whole in sorted(counts.items()):
            self._hand_on(local, whole)

    def _take_given(self, counts: set[int]) -> None:
        for name, file in self.sources.given.items():
            if name.card != self.engine.card:
                raise InputError(
                    f"--tuned-table {file} was measured on {name.card} and this is "
                    f"{self.engine.card}; measure one here with `leanmoe bench tune`"
                )
            if name.width != self.width or name.experts not in counts:
                raise InputError(
                    f"--tuned-table {file} is for {name.experts} experts of width {name.width}, "
                    f"and a rank of this engine holds {_listed(sorted(counts))} of width "
                    f"{self.width}; give the table of that shape"
                )
            self._take(name, file, f"given as {file}")

    def _take_carried(self, counts: set[int]) -> None:
        for one in self.sources.carried:
            name = one.name
            if name.card != self.engine.card:
                self._leave(name, f"this card is {self.engine.card}")
            elif name.width != self.width or name.experts not in counts:
                self._leave(name, f"a rank holds {_listed(sorted(counts))} of width {self.width}")
            elif name.file not in self.files:
                measured = f"measured on {one.record.date} under vLLM {one.record.vllm}"
                self._take(name, one.path, f"the checkpoint's own, {measured}")

    def _hand_on(self, local: int, whole: int) -> None:
        engine = self.engine
        has = {one.file for one in tables_of(engine.tables, local, self.width, engine.card)}
        has |= {name for name in self.files if name.startswith(f"E={local},N={self.width},")}
        before = [
            count for count in experts_before(self.sources.checkpoint.manifest) if count > whole
        ]
        for count in before:
            source = max(engine.local_counts(count))
            for name in tables_of(engine.tables, source, self.width, engine.card):
                ours = name.of(local)
                if ours.file not in has:
                    has.add(ours.file)
                    self._take(ours, engine.tables / name.file, f"vLLM's of {source} experts")
        wanted = self.sources.asked_for(engine, TableName(local, self.width, engine.card))
        if self.sources.was_cut and (not has if wanted is None else wanted.file not in has):
            kind = f" of {wanted.weights}" if wanted else ""
            self._say(
                f"no tuned table for {_listed([local])} of width {self.width}{kind} on "
                f"{engine.card}{_nor_for(before)}: vLLM takes untuned tiles; `leanmoe bench tune` "
                "measures a table",
                logging.WARNING,
            )

    def _take(self, name: TableName, origin: Path, said: str) -> None:
        self.files[name.file] = origin
        self._say(f"tuned table {name.file}: {said}")

    def _leave(self, name: TableName, why: str) -> None:
        self._say(f"tuned table {name.file} of the checkpoint is left alone: {why}")

    def _say(self, line: str, level: int = logging.INFO) -> None:
        self.said.append((level, line))


def _listed(counts: Sequence[int]) -> str:
    return f"{' or '.join(map(str, counts)) or 'no'} experts"


def _nor_for(before: Sequence[int]) -> str:
    return f", nor for the {' or '.join(map(str, before))} of its source" if before else ""


@contextmanager
def tables_for(sources: TableSources, engine: EngineShape | None) -> Iterator[None]:
    """Let the engine that is started in the block read the tables that fit it.

    ``engine`` is ``None`` away from CUDA, where no kernel reads tables. A folder the user has set
    stays as it is, and the log says what could be copied there.
    """
    files = _files_for(sources, engine)
    if not files:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="leanmoe-tuned-") as folder:
        for name, origin in files.items():
            shutil.copyfile(origin, Path(folder, name))
        _LOG.info("%s is %s while this server runs", FOLDER_VARIABLE, folder)
        # The engine's processes inherit it.
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]


def _files_for(sources: TableSources, engine: EngineShape | None) -> Mapping[str, Path]:
    """What is to lie in the folder; ``InputError`` where a given table cannot be used."""
    why = "it does not run on CUDA" if engine is None else engine.ignores
    if sources.given and why is not None:
        raise InputError(f"--tuned-table cannot be used: this engine reads no tables ({why})")
    if engine is None:
        return {}
    if why is not None:
        if sources.was_cut or sources.carried:
            _LOG.info("no tuned tables are handed to this engine: %s", why)
        return {}
    choice, own = _Choice(sources, engine), os.environ.get(FOLDER_VARIABLE)
    if not own:
        for level, line in choice.said:
            _LOG.log(level, "%s", line)
        return choice.files
    if sources.given:
        raise InputError(
            f"--tuned-table cannot be used while {FOLDER_VARIABLE} is {own}: vLLM reads one "
            "folder; unset it, or copy the table there"
        )
    _say_what_is_missing(choice.files, Path(own))
    return {}


def _say_what_is_missing(files: Mapping[str, Path], own: Path) -> None:
    for name, origin in files.items():
        if not (own / name).exists():
            _LOG.warning(
                "%s is %s and stays so; it lacks %s: copy %s there under that name",
                *(FOLDER_VARIABLE, own, name, origin),
            )
