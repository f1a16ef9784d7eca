"""Outputs that take hours: what is finished survives a kill, and the same command goes on.

Work in progress is kept in a hidden sibling of the output, ``.OUT.partial-KEY``, where KEY
stands for everything the output follows from. A record there names the files that count,
with their digests, and is replaced in one step: a process may die at any instant.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, LeanMoEError, OutputError
from leanmoe.files.digest import file_digest, parse_json
from leanmoe.files.output import atomic_write_json, check_output, put_in_place
from leanmoe.files.scratch import PARTIAL, RECORD, RESULT, discard
from leanmoe.process.interrupts import interrupt_requested

_LOG = logging.getLogger(__name__)


class Unfinished:
    """A folder of work in progress: ``output`` becomes the target, the rest is scratch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / RESULT
        self.output.mkdir(exist_ok=True)
        self.step, self.files = self._read()
        self._tidy()

    def _read(self) -> tuple[int, dict[str, str]]:
        """The last commit, or none where its files are not what it says."""
        record = self.folder / RECORD
        try:
            content: dict[str, Any] = parse_json(record.read_text(encoding="utf-8"))
            step, files = int(content["step"]), dict(content["files"])
            for name, digest in files.items():
                if file_digest(self.folder / name) != digest:
                    raise ValueError(f"{name} was changed")
        except FileNotFoundError as error:
            if record.exists():
                _LOG.warning("%s lacks %s, so it starts again", self.folder, error.filename)
            return 0, {}
        except (ValueError, LookupError, TypeError) as error:
            _LOG.warning("%s cannot be gone on with (%s), so it starts again", self.folder, error)
            return 0, {}
        return step, files

    def commit(self, step: int, files: Mapping[str, str]) -> None:
        """From now on ``files`` (name to digest, already on disk) count and all others go."""
        _sync(self.output)
        _sync(self.folder)
        atomic_write_json(self.folder / RECORD, {"step": step, "files": dict(files)})
        _sync(self.folder)
        self.step, self.files = step, dict(files)
        self._tidy()

    def finished(self) -> dict[str, str]:
        """The counted files of ``output``, by their names there."""
        inside = f"{self.output.name}/"
        return {
            name.removeprefix(inside): digest
            for name, digest in self.files.items()
            if name.startswith(inside)
        }

    def _tidy(self) -> None:
        counted = {self.folder / name for name in (*self.files, RECORD)}
        for path in (*self.folder.iterdir(), *self.output.iterdir()):
            if path.is_file() and path not in counted:
                path.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def resumable_directory(target: Path, key: str, force: bool = False) -> Iterator[Unfinished]:
    """Yield what an earlier run with the same ``key`` finished; it becomes ``target`` at the end.

    A kill, an interrupt or a full disk leaves what was committed, and the message says so.
    Bad input leaves nothing. Raises ``InputError`` while another run is at work on it.
    """
    check_output(target, force)
    try:
        with kept_folder(target, key) as folder:
            yield from _guarded(folder, target, force)
    except OSError as error:
        left = _folder_of(target, key)
        kept = f"; {kept_in(left)}" if left.exists() else ""
        raise OutputError(f"could not write {target}: {error.strerror or error}{kept}") from error


@contextmanager
def kept_folder(target: Path, key: str) -> Iterator[Path]:
    """Where a run keeps what it finished, its own for as long; one left empty goes.

    Raises ``InputError`` while another run is at work on it.
    """
    folder = _folder_of(target, key)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _warn_of_others(target, folder)
        try:
            yield folder
        finally:
            with suppress(OSError):
                folder.rmdir()


def _folder_of(target: Path, key: str) -> Path:
    return target.parent / f".{target.name}.{PARTIAL}-{key}"


def _guarded(folder: Path, target: Path, force: bool) -> Iterator[Unfinished]:
    unfinished = Unfinished(folder)
    try:
        yield unfinished
    except BaseException as error:
        bad_input = isinstance(error, LeanMoEError) and not isinstance(error, OutputError)
        if unfinished.step == 0 or bad_input:
            discard(folder, target)
        elif isinstance(error, KeyboardInterrupt) or interrupt_requested():
            raise KeyboardInterrupt(kept_in(folder)) from None
        raise
    try:
        put_in_place(unfinished.output, target, force)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept_in(folder)) from None
    discard(folder, target)


def kept_in(folder: Path) -> str:
    """What to tell a user whose run was stopped."""
    return (
        f"what is finished is kept in {folder}: run the same command again to go on from there, "
        "or remove that folder"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run is writing to {folder} at this moment; wait for it or stop it"
        ) from None


def _warn_of_others(target: Path, folder: Path) -> None:
    for other in sorted(target.parent.glob(f".{target.name}.{PARTIAL}-*")):
        if other != folder:
            _LOG.warning(
                "%s holds an unfinished run with other inputs or settings, which is of no use to "
                "this one; remove it unless you mean to go on with it",
                other,
            )
