"""Rows of long benches, a file each, so that a run which is begun again goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe.files.output import atomic_write_json

Row = dict[str, Any]


def once(path: Path, make: Callable[[], Row]) -> Row:
    """What ``path`` holds, made first where it holds nothing yet."""
    if not path.exists():
        atomic_write_json(path, make())
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def finished_rows(full: Path, others: Sequence[Path]) -> list[Row]:
    """The rows that are there; ``InputError`` where not even the full model was judged."""
    if not full.exists():
        raise InputError(
            f"{full} is missing, so nothing was measured in {full.parent}; drop --done"
        )
    paths = [full, *others]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
