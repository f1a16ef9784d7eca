"""``leanmoe loadtest``: streamed load on a running server, and what its users felt."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.files.digest import tool_versions
from leanmoe.files.output import atomic_directory, check_output
from leanmoe.process.interrupts import stop_on_signals
from leanmoe.wire import CONTROL_PATH
from leanmoe_loadtest.analysis_options import (
    add_arguments,
    finish,
    levels_of,
    reading_of,
    run_stored,
    sends_nothing,
)
from leanmoe_loadtest.calibrate import calibrated
from leanmoe_loadtest.clock import now
from leanmoe_loadtest.locust_process import (
    Crew,
    Outcome,
    check_found,
    check_free,
    run_load,
    run_worker,
)
from leanmoe_loadtest.messages import Ending
from leanmoe_loadtest.options import add_load_arguments, address, crew_of, settings_of
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.planning import arrivals_of, make_plan
from leanmoe_loadtest.reading.asking import Asked, ask_quality
from leanmoe_loadtest.reading.quality import Quality, write_quality
from leanmoe_loadtest.reading.text import show
from leanmoe_loadtest.run import ConcurrencyLimit, Run, RunInfo, Scrape, write_run
from leanmoe_loadtest.scrape import get_json, scraping, series_names
from leanmoe_loadtest.searching import Load, search
from leanmoe_loadtest.settings import Settings
from leanmoe_loadtest.target import Target, target

_MOST_SKEW_SECONDS = 0.1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="the server, as http://host:port")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the run folder")
    parser.add_argument("--force", action="store_true", help="replace the run folder at DIR")
    parser.add_argument(
        "--locustfile",
        action="store_true",
        help="print where the file for Locust's own command line is",
    )
    add_load_arguments(parser)
    add_arguments(parser)


def _run(args: argparse.Namespace) -> Result:
    if args.locustfile:
        return {"locustfile": str(Path(__file__).with_name("locustfile.py"))}
    with stop_on_signals():
        if args.worker is not None:
            return _work(args)
        if sends_nothing(args):
            return run_stored(args)
        reading, settings = reading_of(args), settings_of(args)
        crew = crew_of(args, settings)
        server = target(args.url)
        if args.output is not None:
            check_output(args.output, args.force)
        # The files are read before the server is asked: they are the more likely mistake.
        plan = make_plan(settings, server.url, settings.model or "", args.seed)
        plan = plan.model_copy(update={"model": server.model(settings.model)})
        if args.find_saturation:
            return search(args, settings, reading, _loading(server, plan.model, crew))
        exported = partial(series_names, server.url, server.headers)
        reading.check(plan, arrivals_of(settings), exported)
        run, interrupted = _measure(server, plan, crew, settings)
        run.info.slo = None if reading.slo is None else reading.slo.text
        if args.output is not None and run.requests:
            with atomic_directory(args.output, args.force) as folder:
                write_run(folder, run)
        if interrupted:
            raise KeyboardInterrupt(_left(run, args.output))
        quality = _quality(server, plan, run, args.output) if reading.quality else None
    return finish(run, reading, quality)


def _loading(server: Target, model: str, crew: Crew) -> Load:
    def load(settings: Settings, seed: int) -> tuple[Run, bool]:
        plan = make_plan(settings, server.url, model, seed)
        return _measure(server, plan, crew, settings)

    return load


def _quality(server: Target, plan: Plan, run: Run, output: Path | None) -> Quality:
    """Ask the quality prompts; the run is stored already, should this be interrupted."""
    asked = Asked(server.url, plan.model, plan.endpoint, server.headers, plan.request_seconds)
    skipping = run.info.skipping_before is not None
    quality = ask_quality(asked, levels_of(plan), skipping)
    if output is not None:
        write_quality(output, quality)
    return quality


def _work(args: argparse.Namespace) -> Result:
    master = address(args.worker, "--worker")
    check_found(master)
    print(f"sending for the master at {master}", file=sys.stderr, flush=True)
    run_worker(master)
    return {"worker_of": str(master)}


def _measure(server: Target, plan: Plan, crew: Crew, settings: Settings) -> tuple[Run, bool]:
    """Run ``plan`` and gather all that belongs to the run."""
    skipping = f"{server.url}{CONTROL_PATH}"
    if crew.master is not None:
        check_free(crew.master)
        text = f"waiting for {crew.workers} workers at {crew.master}"
        print(text, file=sys.stderr, flush=True)
    plan = calibrated(plan, server.headers)
    before, asked = get_json(skipping, server.headers), now()
    with scraping(server.url, server.headers) as scrapes:
        outcome = run_load(plan, crew)
    info = _info(plan, settings, outcome, asked)
    info.skipping_before, info.skipping_after = before, get_json(skipping, server.headers)
    _warn(outcome.ending)
    return _within(Run(info, outcome.records, scrapes)), outcome.interrupted


def _within(run: Run) -> Run:
    """Without the scrapes of the time in which Locust started."""
    scrapes: list[Scrape] = run.metrics
    early = [one for one in scrapes if one.time <= run.info.started]
    return Run(run.info, run.requests, [*early[-1:], *scrapes[len(early) :]])


def _info(plan: Plan, settings: Settings, outcome: Outcome, asked: float) -> RunInfo:
    ending = outcome.ending
    return RunInfo(
        url=plan.url,
        model=plan.model,
        endpoint=plan.endpoint,
        loop="closed" if plan.schedule is None else "open",
        arrivals=arrivals_of(settings),
        users=plan.users,
        duration_seconds=plan.duration,
        prompts=settings.prompts or ("builtin" if plan.prompts else "synthetic"),
        prompt_count=len(plan.prompts),
        levels=[one.model_dump() for one in plan.levels] if plan.levels else None,
        seed=plan.seed,
        settings=settings.model_dump(exclude_defaults=True),
        workers=[worker.name for worker in ending.workers],
        versions=tool_versions(),
        started=ending.started or min((r.sent for r in outcome.records), default=asked),
        ended=ending.ended or now(),
        concurrency=_limit(plan, ending),
        partial=outcome.interrupted or ending.lost > 0,
    )


def _limit(plan: Plan, ending: Ending) -> ConcurrencyLimit | None:
    if plan.schedule is None:
        return None
    limits = [worker.limit for worker in ending.workers]
    first = [one.first_hit for one in limits if one.first_hit is not None]
    return ConcurrencyLimit(
        limit=plan.max_concurrency,
        hits=sum(one.hits for one in limits),
        first_hit=min(first, default=None),
    )


def _warn(ending: Ending) -> None:
    if ending.lost:
        text = f"{ending.lost} workers went away in the middle; the run is marked partial"
        print(f"leanmoe loadtest: {text}", file=sys.stderr)
    for worker in ending.workers:
        if abs(worker.skew) > _MOST_SKEW_SECONDS:
            print(
                f"leanmoe loadtest: the clock of {worker.name} differs from this one by "
                f"{worker.skew:+.2f} s, so its share began at another time",
                file=sys.stderr,
            )


def _left(run: Run, output: Path | None) -> str:
    if output is None or not run.requests:
        return ""
    return f"{output} holds the {len(run.requests)} requests until then, marked partial"


def _show(result: Result) -> str:
    if "worker_of" in result:
        return f"done; the master at {result['worker_of']} has the results"
    if "locustfile" in result:
        return str(result["locustfile"])
    return show(result)


COMMAND = Command(
    name="loadtest",
    help="Stream chats or completions from a running server with Locust and report TTFT, ITL, TPOT "
    "and throughput. The key in OPENAI_API_KEY, if any, is sent to the URL and written nowhere.",
    example="leanmoe loadtest http://127.0.0.1:8000 --arrivals poisson:4 --duration 60 -o run1",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
