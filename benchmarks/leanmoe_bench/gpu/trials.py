"""Many small checks in a process of their own: one that fails hides no other.

The process names all cases, then tells each as it ends. An error that leaves the device unusable,
and an end of the process, fail the case that was tried; the next ones are tried in a new process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from leanmoe.errors import LeanMoEError
from leanmoe_bench.printed import Row, printed, put

Case = tuple[str, Callable[[], bool]]
# Processes that are started before the cases left are given up.
_MOST_STARTS = 6


def run(cases: Iterable[Case], first: int) -> None:
    """The process's part: print the names of all cases, then try those from ``first`` on."""
    listed = list(cases)
    put([{"names": [name for name, _ in listed]}])
    put(_tried(islice(listed, first, None)))


def _tried(cases: Iterable[Case]) -> Iterator[Row]:
    for name, check in cases:
        try:
            yield {"case": name, "passed": bool(check())}
        except Exception as error:
            yield {"case": name, "passed": False, "error": f"{type(error).__name__}: {error}"}
            if _is_broken():
                return


def _is_broken() -> bool:
    """Whether the device answers with the error of a kernel that ran before."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


class Trials:
    """What became of the cases so far."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[Row] = []
        self._trouble: str | None = None

    def collect(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Try every case of a module whose last argument is the number to begin with."""
        for _ in range(_MOST_STARTS):
            self._trouble = self._start(module, *arguments, env=env)
            if not self._names or len(self._rows) >= len(self._names):
                return

    def _start(self, module: str, *arguments: str, env: Mapping[str, str] | None) -> str | None:
        """One process; why it ended before it had tried what was left."""
        first, before = str(len(self._rows)), len(self._rows)
        try:
            for row in printed(module, *arguments, first, env=env, what="the checks"):
                self._take(row)
        except LeanMoEError as error:
            if self._names and len(self._rows) < len(self._names):
                name = self._names[len(self._rows)]
                self._rows.append({"case": name, "passed": False, "error": str(error)})
            return str(error)
        return None if len(self._rows) > before else "the checks ended before the first one"

    def _take(self, row: Row) -> None:
        if "names" in row:
            self._names = row["names"]
        elif "case" in row:
            self._rows.append(row)

    def told(self) -> dict[str, Any]:
        """One row of all of them."""
        if not self._names:
            reason = self._trouble or "no case was tried in time"
            return {"status": "failed", "reason": reason, "passed": False}
        failed = [row for row in self._rows if not row["passed"]]
        left = self._names[len(self._rows) :]
        return {
            "status": "ran",
            "passed": not failed and not left,
            "cases": len(self._names),
            "failed": [row["case"] for row in failed],
            "errors": _errors(failed),
            "not_tried": left,
        }


def _errors(failed: Iterable[Row]) -> dict[str, str]:
    """The errors among them, each by the first case that it came of."""
    first = {row["error"]: row["case"] for row in reversed(list(failed)) if "error" in row}
    return {case: error for error, case in reversed(first.items())}
