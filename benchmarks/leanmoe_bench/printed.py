"""Rows that a process of ours prints, one JSON object a line, taken as they come."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.process.group import last_lines

Row = dict[str, Any]


def printed(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, what: str
) -> Iterator[Row]:
    """Rows of ``python -m module``, which ends with whoever takes them.

    Libraries print as well: what is no JSON object is passed over. A process that fails raises
    ``LeanMoEError`` with the end of what it said, after the rows that it had printed.
    """
    with tempfile.TemporaryDirectory(prefix="leanmoe-bench-") as folder:
        log = Path(folder, "log")
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=env,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        try:
            yield from _rows(process)
            code = process.wait()
        finally:
            process.kill()
            process.communicate()
        if code:
            raise LeanMoEError(f"{what} ended with code {code}\n{last_lines(log)}")


def _rows(process: subprocess.Popen[str]) -> Iterator[Row]:
    assert process.stdout is not None
    for line in process.stdout:
        if (row := _row(line)) is not None:
            yield row


def _row(line: str) -> Row | None:
    try:
        found: object = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def put(rows: Iterable[Row]) -> None:
    """Print rows for ``printed``, each as soon as it is there."""
    for row in rows:
        print(json.dumps(row), flush=True)
