"""Options of ``leanmoe loadtest`` that read runs: goals, checks, report, comparison, search."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanmoe.command import Result
from leanmoe.errors import CheckError, InputError, LeanMoEError
from leanmoe.files.output import atomic_write_text
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.reading.checks import Check, check_measurable, failures, parse_checks
from leanmoe_loadtest.reading.level_name import level_name
from leanmoe_loadtest.reading.quality import QUALITY_FILE, Quality, read_quality
from leanmoe_loadtest.reading.saturation import Bounds
from leanmoe_loadtest.reading.slo import Slo, parse_slo
from leanmoe_loadtest.reading.spreadsheet import as_csv
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.reading.sweep import is_sweep
from leanmoe_loadtest.run import Run, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that is not about sending."""
    group = parser.add_argument_group("reading what was measured")
    group.add_argument(
        "--slo", metavar="GOALS", help="goals of a request, such as 'ttft<1s,itl_p95<50ms,e2e<10s'"
    )
    group.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with 1 if it is true, such as 'ttft_p95>2s' or 'goodput<0.99'; repeatable",
    )
    group.add_argument("--report", type=Path, metavar="FILE", help="write a page of HTML")
    group.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the figures as a table for spreadsheets"
    )
    group.add_argument(
        "--quality",
        action="store_true",
        help="after the load, compare answers at every level of the mix with exact ones",
    )
    group.add_argument("--read", type=Path, metavar="DIR", help="read a stored run; sends nothing")
    _add_comparison(parser.add_argument_group("comparing stored runs"))
    _add_search(parser.add_argument_group("finding the highest rate"))


def _add_comparison(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="ratios with intervals, of A and B, or of several folders and --with",
    )
    group.add_argument(
        "--with", nargs="+", type=Path, dest="with_", metavar="DIR", help="folders of side B"
    )


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--find-saturation",
        action="store_true",
        help="search the highest rate at which enough requests meet --slo",
    )
    group.add_argument(
        "--goodput-target", type=float, default=0.95, metavar="SHARE", help="default 0.95"
    )
    group.add_argument("--most-steps", type=int, default=12, metavar="N", help="default 12")
    group.add_argument(
        "--most-seconds", type=float, default=1800.0, metavar="S", help="default 1800"
    )


@dataclass(frozen=True)
class Reading:
    """What to make of a run."""

    slo: Slo | None
    checks: list[Check]
    report: Path | None
    csv: Path | None
    quality: bool

    def check(self, plan: Plan, arrivals: str | None, exported: Callable[[], set[str]]) -> None:
        """Refuse a check on what this load will not measure, before it starts.

        ``arrivals`` are an open loop's, ``exported`` asks the server for the names of its series.
        """
        given = {
            "slo": self.slo is not None,
            "quality": self.quality,
            "open": plan.schedule is not None,
            "steps": is_sweep(arrivals),
        }
        groups = {plan.endpoint, *map(level_name, levels_of(plan))}
        check_measurable(self.checks, given, groups, exported)


def levels_of(plan: Plan) -> list[str | None]:
    """The mix's levels as records hold them."""
    return [one.text for one in plan.levels] if plan.levels else [None]


def reading_of(args: argparse.Namespace) -> Reading:
    """The options read and checked; ``InputError`` where one is wrong."""
    _check_file(args.report, "--report")
    _check_file(args.csv, "--csv")
    return Reading(
        slo=None if args.slo is None else parse_slo(args.slo),
        # A comparison's and a search's conditions are on other figures.
        checks=[] if args.compare or args.find_saturation else parse_checks(args.fail_if),
        report=args.report,
        csv=args.csv,
        quality=args.quality,
    )


def _check_file(path: Path | None, option: str) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")


def finish(run: Run, reading: Reading, quality: Quality | None = None) -> Result:
    """Figures of ``run``, its page, and what its checks say.

    Raises:
        CheckError: a condition of ``--fail-if`` is true.
    """
    summary = summarise_run(run, reading.slo or goals_of(run), quality)
    if not summary["requests"]["completed"]:
        raise LeanMoEError(
            f"no request to {run.info.url} completed: {summary['requests']}, "
            f"errors {summary['errors']}"
        )
    if reading.report is not None:
        from leanmoe_loadtest.reading.page import run_page

        atomic_write_text(reading.report, run_page(summary, run.requests))
    write_table(reading.csv, summary)
    return checked(summary, failures(reading.checks, summary))


def goals_of(run: Run) -> Slo | None:
    """The goals that the run was made with."""
    return None if run.info.slo is None else parse_slo(run.info.slo)


def write_table(path: Path | None, result: Result) -> None:
    """``--csv``, where it is given."""
    if path is not None:
        atomic_write_text(path, as_csv(result))


def checked(result: Result, failed: Sequence[str]) -> Result:
    """``result``, unless a check has something against it."""
    if failed:
        raise CheckError(f"the check failed: {'; '.join(failed)}", {**result, "failed": [*failed]})
    return result


def sends_nothing(args: argparse.Namespace) -> bool:
    """Whether the command reads stored runs only."""
    return args.read is not None or args.compare is not None


def run_stored(args: argparse.Namespace) -> Result:
    """``--read`` and ``--compare``."""
    if args.url is not None or args.find_saturation or args.quality:
        raise InputError("--read and --compare send nothing: leave out URL and options of sending")
    if args.read is not None and args.compare is not None:
        raise InputError("--read reads one run and --compare several; give one of them")
    if args.compare is not None:
        return _compare(args)
    run = read_run(args.read)
    path = args.read / QUALITY_FILE
    return finish(run, reading_of(args), read_quality(path) if path.exists() else None)


def _compare(args: argparse.Namespace) -> Result:
    from leanmoe_loadtest.reading.compare import compare, parse_ratio_checks, ratio_failures
    from leanmoe_loadtest.reading.sides import check_alike, read_side

    checks = parse_ratio_checks(args.fail_if)
    reading = reading_of(args)
    a, b = (read_side(folders) for folders in _sides(args))
    if not args.force:
        check_alike([a, b])
    found = compare(a, b, args.seed, reading.slo)
    if reading.report is not None:
        from leanmoe_loadtest.reading.page import comparison_page

        atomic_write_text(reading.report, comparison_page(found))
    write_table(reading.csv, found)
    return checked(found, ratio_failures(checks, found))


def _sides(args: argparse.Namespace) -> tuple[Sequence[Path], Sequence[Path]]:
    if args.with_ is not None:
        return args.compare, args.with_
    if len(args.compare) != 2:
        raise InputError(
            f"--compare has {len(args.compare)} folders: give two, or those of side A and then "
            "--with those of side B"
        )
    return args.compare[:1], args.compare[1:]


def bounds_of(args: argparse.Namespace, first_rate: float | None) -> Bounds:
    """Where the search starts and what ends it."""
    if args.quality:
        raise InputError("--quality belongs to one run; run it at the rate that was found")
    if args.slo is None:
        raise InputError("--find-saturation searches the rate that meets goals; give --slo")
    if not 0 < args.goodput_target <= 1:
        raise InputError(f"--goodput-target is {args.goodput_target}, expected above 0, up to 1")
    if not 2 <= args.most_steps <= 100:
        raise InputError(f"--most-steps is {args.most_steps}, expected 2 to 100")
    if not 1 <= args.most_seconds <= 86_400:
        raise InputError(f"--most-seconds is {args.most_seconds}, expected 1 to 86400")
    return Bounds(
        first_rate=first_rate or 1.0,
        target=args.goodput_target,
        most_steps=args.most_steps,
        most_seconds=args.most_seconds,
    )
