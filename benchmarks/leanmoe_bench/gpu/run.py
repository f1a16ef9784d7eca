"""The parts one after the other, each under its own deadline, every row written as it comes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu.deadline import Deadline, OutOfTime, TooLateError
from leanmoe_bench.gpu.parts import Context, Part
from leanmoe_bench.gpu.session import Engines, Row
from leanmoe_bench.gpu.settings import Settings
from leanmoe_bench.machine import environment


def say(text: str) -> None:
    """One line for people; standard output belongs to the rows."""
    print(f"[gpu_check] {text}", file=sys.stderr, flush=True)


class Rows:
    """Where rows go: standard output, and a file that is appended to. All are kept as well."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self.kept: list[Row] = []
        self.part = ""
        self._file, self._start = file, time.monotonic()

    def put(self, row: Row) -> None:
        """Write a row out at once: a run cut off loses nothing."""
        row = {**row, "part": self.part} if self.part else row
        row["t"] = round(time.monotonic() - self._start, 1)
        self.kept.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()

    @property
    def failed(self) -> bool:
        """Whether a check or a part failed; what cannot run, or ran out of time, did not."""
        return any(row.get("passed") is False or row.get("status") == "failed" for row in self.kept)


def run(parts: Sequence[Part], settings: Settings, rows: Rows) -> None:
    """Run ``parts``; the next one runs whatever became of the last."""
    rows.put(_environment(settings))
    engines = Engines(settings, rows.put)
    with tempfile.TemporaryDirectory(prefix="leanmoe-gpu-") as work:
        context = Context(settings, engines, Path(work))
        try:
            for part in parts:
                rows.part = part.name
                say(f"{part.name}: {part.about}")
                _run_part(part, context, rows)
        finally:
            rows.part = ""
            engines.close()


def _run_part(part: Part, context: Context, rows: Rows) -> None:
    deadline = Deadline(context.settings.limit)
    ended: dict[str, Any]
    try:
        with deadline.enforced():
            for row in part.run(context, deadline):
                rows.put(row)
        ended = {"status": "done"}
    except TooLateError as error:
        ended = {"status": "cut off", "reason": str(error)}
    except OutOfTime:
        context.engines.close()
        ended = {"status": "cut off", "reason": f"out of time after {deadline.taken():.0f} s"}
    except Exception as error:  # whatever it is, the other parts are to run
        context.engines.close()
        told = str(error) if isinstance(error, LeanMoEError) else f"{type(error).__name__}: {error}"
        ended = {"status": "failed", "reason": told}
    rows.put({"row": "part", **ended, "seconds": round(deadline.taken(), 1)})


def _environment(settings: Settings) -> Row:
    card = None if settings.card is None else asdict(settings.card)
    return {
        "row": "environment",
        "tool": "gpu_check",
        "rehearsal": settings.rehearses,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": settings.command_line,
        "graphs": settings.graphs,
        **environment(),
        **({} if card is None else {"card": card}),
    }
