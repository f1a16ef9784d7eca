"""What the model compared with said, kept in a folder: many cuts of one model, one pass over it.

A file's name is a digest of the weights, of what was asked and of how it was computed, so nothing
stale is ever taken up. Hidden states are those after the last layer, before the head. Files appear
whole or not at all; where one cannot be written or read, the model is run and a warning says so.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file

from leanmoe.errors import InputError, OutputError
from leanmoe.files.digest import bytes_digest, tool_versions
from leanmoe.files.output import atomic_write_json
from leanmoe.files.scratch import remove_abandoned, scratch_file
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.evaluation.task_result import TaskResult
from leanmoe_pruning.forward.passes import Hidden
from leanmoe_pruning.precision import default_precision

_LOG = logging.getLogger(__name__)
Found = TypeVar("Found")
_HALF = re.compile(r"\.((?:hidden|tasks)-[0-9a-f]{32}\.[a-z]+)\.new-[0-9a-f]{8}")


class Remembered:
    """Results of one model in ``folder``; without a folder everything is made anew."""

    def __init__(self, folder: Path | None, weights_digest: str, compute: str | None) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InputError(f"--remember {folder}: this is a file, expected a folder")
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                _tidy(folder)
        except OSError as error:
            raise OutputError(f"could not make --remember {folder}: {error.strerror}") from None
        self._folder = folder
        # A folder may move to a processor on which half precision is computed with otherwise.
        computed = compute or f"default {default_precision(2)}"
        self._of = [weights_digest, computed, json.dumps(tool_versions())]

    def hidden(self, data_digest: str, make: Callable[[], Hidden]) -> Hidden:
        """Final hidden states of a data set, one tensor ``[N, T, D]`` per source."""
        path = self._path("hidden", data_digest, ".safetensors")
        return _taken_up(path, _read_hidden, _write_hidden, make)

    def tasks(
        self, task_digests: str | None, make: Callable[[], list[TaskResult]]
    ) -> list[TaskResult]:
        """Task results; asked again where the judge cannot name its tasks by digest."""
        path = self._path("tasks", task_digests, ".json") if task_digests else None
        return _taken_up(path, _read_tasks, _write_tasks, make)

    def _path(self, kind: str, asked: str, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        digest = bytes_digest(part.encode() + b"\n" for part in [*self._of, asked])
        return self._folder / f"{kind}-{digest.removeprefix('sha256:')[:32]}{suffix}"


def _tidy(folder: Path) -> None:
    """Remove what killed runs left of answers that nobody may ask for again."""
    for path in list(folder.iterdir()):
        if found := _HALF.fullmatch(path.name):
            remove_abandoned(folder / found[1])


def _taken_up(
    path: Path | None,
    read: Callable[[Path], Found],
    write: Callable[[Path, Found], None],
    make: Callable[[], Found],
) -> Found:
    """What ``path`` holds; made and kept there where it holds nothing sound."""
    if path is None:
        return make()
    try:
        return read(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        _LOG.warning("%s cannot be read (%s), so the model is run again", path, error)
    found = make()
    try:
        write(path, found)
    except OSError as error:
        _LOG.warning("could not keep %s: %s; it will be made anew", path, error.strerror or error)
    return found


def _read_hidden(path: Path) -> Hidden:
    held = load_file(path)
    return [held[str(index)] for index in range(len(held))]


def _write_hidden(path: Path, hidden: Hidden) -> None:
    with _whole(path) as temporary:
        write_tensors(temporary, {str(place): part for place, part in enumerate(hidden)})


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that becomes it once it is written."""
    remove_abandoned(path)
    temporary, handle = scratch_file(path, 0o666)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _read_tasks(path: Path) -> list[TaskResult]:
    return [_task_result(one) for one in json.loads(path.read_text(encoding="utf-8"))["tasks"]]


def _write_tasks(path: Path, tasks: list[TaskResult]) -> None:
    atomic_write_json(path, {"tasks": [asdict(one) for one in tasks]})


def _task_result(held: dict[str, object]) -> TaskResult:
    lists = {key: tuple(value) for key, value in held.items() if isinstance(value, list)}
    if held.get("log_p") is not None:
        lists["log_p"] = tuple(tuple(one) for one in lists["log_p"])
    return TaskResult(**{**held, **lists})  # type: ignore[arg-type]
