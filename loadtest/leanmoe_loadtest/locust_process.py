"""Locust in processes of its own: its patching of the standard library stays there.

The process group is told to end by closing a pipe, so it ends too where this process is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.process.patience import Patience
from leanmoe.process.ports import free_port
from leanmoe_loadtest.messages import Ending
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord

_LOCUST_FILE = Path(__file__).with_name("locust_file.py")
_IDLE_SECONDS = 60.0
_WORKERS_SECONDS = 3600.0
_CUT_SECONDS, _WORKER_CUT_SECONDS = 15.0, 3.0


@dataclass(frozen=True)
class Address:
    """Where a master listens, or a worker finds it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Crew:
    """Which processes send: this many here, or ``workers`` that come to ``master``."""

    processes: int = 1
    master: Address | None = None
    workers: int = 0

    @property
    def size(self) -> int:
        return self.workers if self.master else self.processes


@dataclass(frozen=True)
class Outcome:
    """Every record of a run, how it ended, and whether it was stopped before."""

    records: list[RequestRecord]
    ending: Ending
    interrupted: bool = False


def run_load(plan: Plan, crew: Crew) -> Outcome:
    """Send ``plan``; after an interrupt, what was recorded until then."""
    with tempfile.TemporaryDirectory(prefix="leanmoe-loadtest-") as folder:
        files = {name: Path(folder, f"{name}.json") for name in ("plan", "records", "ending")}
        files["plan"].write_text(plan.model_dump_json(), encoding="utf-8")
        given = [part for name, path in files.items() for part in (f"--{name}", str(path))]
        arguments = [*given, *_crew_arguments(crew)]
        with _locust(arguments, Path(folder)) as locust:
            interrupted = _wait(locust, plan, crew)
        if not interrupted and not files["ending"].exists():
            raise LeanMoEError(f"Locust ended with code {locust.code}: {locust.tail}")
        return _outcome(files["records"], files["ending"], interrupted)


def run_worker(master: Address) -> None:
    """Be a worker of the master at ``master`` until it says that the run is over."""
    arguments = ["--worker", "--master-host", master.host, "--master-port", str(master.port)]
    with (
        tempfile.TemporaryDirectory(prefix="leanmoe-loadtest-") as folder,
        _locust(arguments, Path(folder)) as locust,
    ):
        try:
            code = locust.process.wait()
        except KeyboardInterrupt:
            locust.cut(_WORKER_CUT_SECONDS)
            raise
        if code != 0:
            raise LeanMoEError(f"the worker of {master} ended with code {code}: {locust.tail}")


def _outcome(records: Path, ending: Path, interrupted: bool) -> Outcome:
    # A line that was being written when Locust was killed has no end.
    lines = records.read_text(encoding="utf-8").split("\n")[:-1] if records.exists() else []
    text = ending.read_text(encoding="utf-8") if ending.exists() else "{}"
    return Outcome(
        [RequestRecord.model_validate_json(line) for line in lines],
        Ending.model_validate_json(text or "{}"),
        interrupted,
    )


def _crew_arguments(crew: Crew) -> list[str]:
    users = ["--users", str(crew.size), "--spawn-rate", str(crew.size)]
    if crew.master is not None:
        listen = ["--master-bind-host", crew.master.host, "--master-bind-port"]
        listen += [str(crew.master.port), "--expect-workers", str(crew.workers)]
        return [*users, "--headless", "--master", *listen]
    if crew.processes == 1:
        return [*users, "--headless"]
    port = str(free_port())
    local = ["--master-bind-host", "127.0.0.1", "--master-host", "127.0.0.1"]
    ports = ["--master-bind-port", port, "--master-port", port]
    return [*users, "--headless", "--processes", str(crew.processes), *local, *ports]


def check_free(address: Address) -> None:
    """``InputError`` unless a master can listen at ``address``."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        raise InputError(f"the master cannot listen at {address}: {error.strerror}") from None


def check_found(address: Address) -> None:
    """``InputError`` unless a master could be at ``address``."""
    try:
        socket.getaddrinfo(address.host, address.port)
    except OSError as error:
        raise InputError(f"the master {address} cannot be found: {error.strerror}") from None


@dataclass
class _Locust:
    """A running Locust; it ends when ``control`` is closed."""

    process: subprocess.Popen[bytes]
    control: int
    log: Path

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-500:]

    def cut(self, seconds: float = _CUT_SECONDS) -> None:
        """Let it record what is under way as unfinished; a second interrupt ends it at once."""
        os.close(self.control)
        self.control = -1
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.wait(seconds)


@contextmanager
def _locust(arguments: list[str], folder: Path) -> Iterator[_Locust]:
    """Locust with a locustfile of ours; the whole process group is gone after the block."""
    command = [sys.executable, "-P", "-m", "locust", "--locustfile", str(_LOCUST_FILE)]
    flags = ["--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0"]
    # Locust reads LOCUST_* as options and locust.conf in the working directory.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LOCUST_")}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)
    theirs, ours = os.pipe()
    log = folder / "locust.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *flags, "--control", str(theirs), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            env=environment,
            pass_fds=(theirs,),
            start_new_session=True,
        )
    os.close(theirs)
    locust = _Locust(process, ours, log)
    try:
        yield locust
    finally:
        if locust.control >= 0:
            os.close(locust.control)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(locust: _Locust, plan: Plan, crew: Crew) -> bool:
    """Wait for the end; true where an interrupt brought it."""
    start = _WORKERS_SECONDS if crew.master else 0.0
    end = time.monotonic() + plan.duration + plan.request_seconds + start
    patience: Patience | None = None  # once the load's own time is over
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task(f"load on {plan.url}", total=plan.duration)
            while locust.process.poll() is None:
                try:
                    locust.process.wait(0.5)
                except subprocess.TimeoutExpired:
                    progress.advance(bar, 0.5)
                if time.monotonic() > end:
                    patience = patience or Patience(locust.process.pid, idle_seconds=_IDLE_SECONDS)
                    _check_still_ending(patience)
    except KeyboardInterrupt:
        locust.cut()
        return True
    return False


def _check_still_ending(patience: Patience) -> None:
    if lost := patience.lost():
        raise LeanMoEError(f"the load generator does not stop: {lost}; nothing is reported")
