"""A progress bar on a terminal's stderr; anywhere else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leanmoe_pruning.amounts import show_seconds

Tick = Callable[[], None]
# Seconds between two lines.
EVERY = 30.0


def no_tick() -> None:
    """For work whose progress nobody watches."""


@contextmanager
def progress(title: str, steps: int) -> Iterator[Tick]:
    """Yield a function to call once per finished step."""
    with _bar(title, steps) if sys.stderr.isatty() else _lines(title, steps) as tick:
        yield tick


@contextmanager
def _bar(title: str, steps: int) -> Iterator[Tick]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda: bar.advance(task)


@dataclass
class _Report:
    """What a log is told of work that takes long."""

    title: str
    steps: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    def tick(self) -> None:
        self.done += 1

    def line(self) -> str:
        passed = time.monotonic() - self.started
        said = f"{self.title}: {self.done} of {self.steps} after {show_seconds(passed)}"
        if not 0 < self.done < self.steps:
            return said
        return f"{said}, {show_seconds(passed / self.done * (self.steps - self.done))} to go"

    def run(self) -> None:
        """A line at a time until the work has ended; a step may take longer than that."""
        while not self.ended.wait(EVERY):
            with suppress(OSError, ValueError):  # a full disk, a stream that was closed
                print(self.line(), file=sys.stderr, flush=True)


@contextmanager
def _lines(title: str, steps: int) -> Iterator[Tick]:
    report = _Report(title, steps)
    thread = threading.Thread(target=report.run, name="progress", daemon=True)
    thread.start()
    try:
        yield report.tick
    finally:
        report.ended.set()
        thread.join()
