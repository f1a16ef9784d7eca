"""Files of JSON lines that users give, with the line number for what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json
from leanmoe.files.text import user_text


def read_text(path: Path) -> str:
    """The text of ``path``; ``InputError`` where it cannot be read."""
    try:
        return user_text(path)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from None


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file of JSON lines with where it stands; empty lines are left out."""
    # Only line feeds end a line: JSON strings may hold other characters that split lines.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where} cannot be read as JSON ({error})") from None
        if not isinstance(value, dict):
            raise InputError(f"{where} is not a JSON object")
        yield where, value
