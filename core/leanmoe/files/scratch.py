"""Hidden siblings of an output while it is made, and what a killed process left of them.

A folder or file ``.OUT.KIND-XXXXXXXX`` is locked by the process that made it for as long as that
lives, so that the next run tells those of the dead from those of the living.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

PART, SPOOL, ASIDE, TEXT = "part", "spool", "old", "new"
# Work that a later run goes on with, what there says how far it is, its result.
PARTIAL, RECORD, RESULT = "partial", "progress.json", "output"
# Under ASIDE: what stood where an output was being put.
HELD = "old"


class ScratchFolder:
    """An empty folder beside ``target``, this process's own until it is removed."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def beside(cls, target: Path, kind: str) -> Self:
        """Make one; raises ``OSError``."""

        def make(path: Path) -> int:
            path.mkdir()  # as the umask says, and so is the output that it may become
            return os.open(path, os.O_RDONLY)

        return cls(*_made(target, kind, make))

    def remove(self) -> None:
        """Remove it with all it holds, unless it was moved, and let go of it."""
        remove_folder(self.path)
        self.release()

    def release(self) -> None:
        """From now on nobody's."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def scratch_file(target: Path, mode: int) -> tuple[Path, int]:
    """A file beside ``target`` and its descriptor, to write and close."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    return _made(target, TEXT, lambda path: os.open(path, flags, mode))


def _made(target: Path, kind: str, make: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        path = target.parent / f".{target.name}.{kind}-{secrets.token_hex(4)}"
        handle = make(path)
        with suppress(OSError):  # of file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return path, handle
        os.close(handle)  # somebody took it for abandoned before it was locked


@contextmanager
def scratch_folder(target: Path, kind: str) -> Iterator[Path]:
    """A folder beside ``target`` for as long as the block runs."""
    folder = ScratchFolder.beside(target, kind)
    try:
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned(target: Path) -> None:
    """Remove what killed processes left beside ``target``; put back an output they had moved."""
    kinds = "|".join((PART, SPOOL, ASIDE, TEXT))
    keys = rf"(?:{kinds})-[a-z0-9_]{{8}}|{PARTIAL}-[a-z0-9]{{12,16}}"
    name = re.compile(rf"\.{re.escape(target.name)}\.(?={keys}$)([a-z]+)-.*")
    with suppress(OSError):  # nothing there, or not ours to tidy
        for path in sorted(target.parent.iterdir()):
            if (match := name.fullmatch(path.name)) and not path.is_symlink():
                _remove_if_abandoned(path, match[1], target)


def _is_of_use(folder: Path) -> bool:
    """Whether a run can go on with it: not before its first step, nor once the result is out."""
    if (folder / RECORD).exists() or (folder / RESULT).exists():
        return (folder / RECORD).exists() and (folder / RESULT).exists()
    # Without a record each whole file counts by itself.
    return any(not path.name.endswith(f".{PART}") for path in folder.iterdir())


def _remove_if_abandoned(path: Path, kind: str, target: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if kind == PARTIAL and _is_of_use(path):
                return
            if kind == ASIDE and (path / HELD).exists() and not target.exists():
                (path / HELD).replace(target)
            path.unlink() if kind == TEXT else remove_folder(path)
        finally:
            os.close(handle)


def discard(folder: Path, target: Path) -> None:
    """Remove a folder that was kept beside ``target``; killed meanwhile, the next run goes on.

    An interrupt waits for it: the result is in place, and nobody would look for what is left.
    """
    spent = target.parent / f".{target.name}.{PART}-{secrets.token_hex(4)}"
    try:
        _discard(folder, spent)
    except KeyboardInterrupt:
        _discard(folder, spent)
        raise


def _discard(folder: Path, spent: Path) -> None:
    with suppress(OSError):
        folder.rename(spent)
    remove_folder(spent if spent.exists() else folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours with all it holds, a second interrupt notwithstanding."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
