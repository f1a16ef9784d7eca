r"""Parts of an option, ``FILE[:MORE]`` with commas between them, where names may hold both.

A file that exists by its whole name is taken as that file. From then on its commas and colons
are written ``\,`` and ``\:``, so what a bundle records is read alike where the file is gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_COMMA, _COLON = (re.compile(rf"(?<!\\){sign}") for sign in ",:")
# What may follow a file's name: a tensor and a count.
_MOST_AFTER = 2


def written(name: str) -> str:
    """A file's name as parts spell it."""
    return re.sub("([,:])", r"\\\1", name)


def fields_of(part: str) -> list[str]:
    """What stands between the colons of one part."""
    return [re.sub(r"\\([,:])", r"\1", field) for field in _COLON.split(part)]


def split_parts(text: str) -> list[str]:
    """What stands between the commas of a list that is ``written`` already."""
    return [part.strip() for part in _COMMA.split(text)]


def found_parts(text: str, builtin: Sequence[str] = (), before: str = "") -> list[str]:
    """The parts of a list, every file's name as ``written``.

    What begins with one of ``builtin`` names no file; ``before`` may stand before one that does.
    """
    pieces, parts = _COMMA.split(text), []
    while pieces:
        taken, part = _longest(pieces, builtin, before)
        parts.append(part)
        pieces = pieces[taken:]
    return parts


def as_written(part: str, builtin: Sequence[str] = (), before: str = "") -> str:
    """One part, where a comma ends none."""
    return _of_file(part.strip(), builtin, before) or part.strip()


def _longest(pieces: Sequence[str], builtin: Sequence[str], before: str) -> tuple[int, str]:
    """How many pieces are one part, and it: as many as name a file together, else one."""
    for count in range(len(pieces), 0, -1):
        part = _of_file(",".join(pieces[:count]).strip(), builtin, before)
        if part is not None:
            return count, part
    return 1, pieces[0].strip()


def _of_file(text: str, builtin: Sequence[str], before: str) -> str | None:
    """``text`` with the name of its file as ``written``; ``None`` where there is no such file."""
    if text.startswith(tuple(builtin)):
        return None
    head = before if text.startswith(before) else ""
    fields = text.removeprefix(head).split(":")
    for count in range(len(fields), max(0, len(fields) - 1 - _MOST_AFTER), -1):
        name, after = ":".join(fields[:count]), fields[count:]
        if not any("," in field for field in after) and is_file(Path(name)):
            return head + ":".join([written(name), *after])
    return None


def is_file(path: Path) -> bool:
    """Whether there is such a file, whatever was given as its name."""
    try:
        return path.is_file()
    except OSError:  # a name too long to be one
        return False
