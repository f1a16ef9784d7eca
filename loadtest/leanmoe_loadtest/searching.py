"""``--find-saturation``: the search run on a live server, every step stored."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from leanmoe.command import Result
from leanmoe.files.output import atomic_directory, atomic_write_json, atomic_write_text
from leanmoe_loadtest.analysis_options import Reading, bounds_of, checked, write_table
from leanmoe_loadtest.reading.checks import OPTION
from leanmoe_loadtest.reading.conditions import Condition, parse_condition
from leanmoe_loadtest.reading.saturation import Bounds, Step, find_saturation, step_of
from leanmoe_loadtest.reading.slo import Slo
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.run import Run, write_run
from leanmoe_loadtest.settings import Settings

SEARCH_FILE = "saturation.json"
_KINDS = {"saturation_rate": "number", "goodput_per_second": "number"}
# Sends the load of some settings with a seed; the run, and whether it was stopped.
Load = Callable[[Settings, int], tuple[Run, bool]]


def search(args: argparse.Namespace, settings: Settings, reading: Reading, load: Load) -> Result:
    """Find the rate; ``InputError`` before anything is sent, ``CheckError`` at the end."""
    checks = [parse_condition(one, _KINDS, OPTION, "saturation_rate<10") for one in args.fail_if]
    bounds = bounds_of(args, settings.rate)
    assert reading.slo is not None
    with _folder(args) as folder:
        steps = _Steps(settings, reading.slo, bounds, load, folder, args.seed)
        found = {**find_saturation(steps.measure, bounds), "slo": reading.slo.text, **steps.about()}
        if folder is not None:
            atomic_write_json(folder / SEARCH_FILE, found)
    if found["ended"] == "interrupted":
        left = f"{args.output} holds the steps until then" if args.output else ""
        raise KeyboardInterrupt(left)
    if reading.report is not None:
        _write_page(reading.report, found, steps)
    write_table(reading.csv, found)
    return checked(found, [text for check in checks if (text := _failure(check, found))])


@contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path | None]:
    if args.output is None:
        yield None
        return
    with atomic_directory(args.output, args.force) as folder:
        yield folder


class _Steps:
    """Runs the steps of a search and keeps what they measured."""

    def __init__(
        self,
        settings: Settings,
        slo: Slo,
        bounds: Bounds,
        load: Load,
        folder: Path | None,
        seed: int,
    ) -> None:
        self._settings, self.slo, self._bounds = settings, slo, bounds
        self._load, self._folder, self._seed = load, folder, seed
        self.runs: list[tuple[float, Run]] = []

    def measure(self, rate: float, number: int) -> Step:
        """One run of Poisson arrivals at ``rate``, with a seed of its own."""
        changes = {"rate": rate, "arrivals": None, "users": None}
        start = time.monotonic()
        run, interrupted = self._load(
            self._settings.model_copy(update=changes), self._seed + number
        )
        if interrupted:
            raise KeyboardInterrupt
        self.runs.append((rate, run))
        if self._folder is not None:
            place = self._folder / f"step-{number + 1:02d}"
            place.mkdir()
            write_run(place, run)
        summary = summarise_run(run, self.slo)
        step = step_of(rate, summary, self._bounds.target, time.monotonic() - start)
        _say(number, step)
        return step

    def about(self) -> dict[str, str]:
        """Whom the search was about."""
        if not self.runs:
            return {}
        info = self.runs[0][1].info
        return {"url": info.url, "model": info.model}


def _say(number: int, step: Step) -> None:
    share = "nothing decided" if step.share is None else f"goodput {step.share:.1%}"
    word = "holds" if step.holds else "late, by the generator" if step.late else "does not hold"
    print(
        f"step {number + 1}: {step.rate:.4g} requests/s, {share}: {word}",
        file=sys.stderr,
        flush=True,
    )


def _failure(check: Condition, found: Result) -> str | None:
    names = {"saturation_rate": "rate", "goodput_per_second": "goodput_per_second"}
    # Where no rate held, the highest that does is none.
    value = float(found[names[check.name]] or 0.0)
    return f"{check.text} is true: {value:.4g}" if check.holds(value) else None


def _write_page(path: Path, found: Result, steps: _Steps) -> None:
    from leanmoe_loadtest.reading.page import saturation_page

    best = next((run for rate, run in reversed(steps.runs) if rate == found["rate"]), None)
    summary = None if best is None else summarise_run(best, steps.slo)
    page = saturation_page(found, summary, best.requests if best else [])
    atomic_write_text(path, page)
