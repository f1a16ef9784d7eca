"""A JSON-lines file that is only ever appended to, each line on the disk before the next."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from leanmoe.errors import InputError

_MODE = 0o640
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Journal:
    """An open file; opened anew when the one at its path is another, as logrotate leaves it."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``; ``InputError`` where that is not possible."""
        self._path = path
        try:
            self._descriptor = self._opened()
        except OSError as error:
            raise InputError(
                f"--audit-file {path} cannot be appended to: {error.strerror or error}; "
                "name a file in a directory that the server may write to"
            ) from None

    def append(self, line: str) -> None:
        """Write ``line`` and wait until it is on the disk; ``OSError`` where it is not."""
        if self._moved():
            # Opened before the old one is closed: where that fails, the old one is still there.
            descriptor = self._opened()
            self.close()
            self._descriptor = descriptor
        rest = line.encode() + b"\n"
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _opened(self) -> int:
        descriptor = os.open(self._path, _FLAGS, _MODE)
        try:
            _end_last_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _moved(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self._descriptor))


def _end_last_line(descriptor: int) -> None:
    """What a crash cut off stays a line of its own."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
