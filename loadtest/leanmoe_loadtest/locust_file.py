"""What ``leanmoe loadtest`` runs in Locust: each worker's one user sends the worker's share.

The master (or a single process, which is its own master) hands out the plan, gathers the records
and ends when every worker is done. Importing this module patches the standard library for
gevent, so only Locust's processes do.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from locust import User, events, runners, task
from locust.exception import StopUser
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from leanmoe_loadtest.clock import now
from leanmoe_loadtest.messages import (
    API_KEY_VARIABLE,
    CUT,
    DONE,
    GO,
    RECORDS,
    ClockSkew,
    Ending,
    WorkerEnding,
)
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.session import Session, Share

_FLUSH_SECONDS = 0.5
# Between handing out the plan and the first request: workers build their requests meanwhile.
_LEAD_SECONDS = {True: 1.5, False: 0.2}
_MOST_BUFFERED = 200
# Seconds of silence after which a worker counts as lost. Locust's three are soon over on a busy
# machine, and it ends a run whose last worker it misses.
runners.HEARTBEAT_LIVENESS = 12


class Sharer(User):  # type: ignore[misc]
    """Waits for the plan and does this worker's share of it."""

    @task  # type: ignore[untyped-decorator]
    def share(self) -> None:
        worker = _Worker.of(self.environment)
        worker.go.wait()
        worker.work()
        raise StopUser


class _Worker:
    """A worker's side: takes the plan, sends, reports."""

    _one: _Worker | None = None

    @classmethod
    def of(cls, environment: Any) -> _Worker:
        cls._one = cls._one or cls(environment.runner)
        return cls._one

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.go = Event()
        self._lines: list[str] = []
        self._busy = False
        self._session: Session | None = None
        runner.register_message(GO, self._take_plan)
        runner.register_message(CUT, lambda **_: self.cut())

    def _take_plan(self, environment: Any, msg: Any, **_: Any) -> None:
        self._most_skew = now() - msg.data["clock"]
        self._start = msg.data["start"]
        self._share = Share(*msg.data["share"])
        plan = Plan.model_validate_json(msg.data["plan"])
        key = os.environ.get(API_KEY_VARIABLE)
        self._session = Session(plan, self._share, key, self._keep)
        self.go.set()

    def cut(self) -> None:
        """Stop sending; a worker that never got a plan ends."""
        if self._session is None:
            gevent.spawn(self._runner.quit)
        else:
            self._session.cut()

    def work(self) -> None:
        """Send the share and report it, once: Locust starts the user again where others died."""
        if self._busy or self._session is None:
            return
        self._busy = True
        flusher = gevent.spawn(self._flush_now_and_then)
        try:
            self._session.run(self._start)
        finally:
            flusher.kill()
            self._flush()
            limit = self._session.limit.model_dump()
            content = {"name": self._share.name, "limit": limit, "most_skew": self._most_skew}
            self._runner.send_message(DONE, {**content, "clock": now()})

    def _keep(self, record: RequestRecord) -> None:
        self._lines.append(record.model_dump_json())
        if len(self._lines) >= _MOST_BUFFERED:
            self._flush()

    def _flush_now_and_then(self) -> None:
        while True:
            gevent.sleep(_FLUSH_SECONDS)
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._runner.send_message(RECORDS, {"lines": lines})


class _Master:
    """The master's side: hands out the plan, writes the records down, ends the run."""

    def __init__(self, runner: Any, options: Any) -> None:
        self._runner, self._options = runner, options
        self._waiting: set[str] = set()
        self._ending = Ending()
        self._begun = False
        self._records = Path(options.records).open("a", encoding="utf-8")  # noqa: SIM115
        runner.register_message(RECORDS, self._take_records)
        runner.register_message(DONE, self._take_done)

    @property
    def _spread(self) -> bool:
        return isinstance(self._runner, MasterRunner)

    def begin(self) -> None:
        """Hand every worker its share; all start at one time."""
        if self._begun:
            return
        self._begun = True
        plan = Path(self._options.plan).read_text(encoding="utf-8")
        clients = [client.id for client in self._runner.clients.all] if self._spread else ["local"]
        self._waiting = set(clients)
        start = now() + _LEAD_SECONDS[self._spread]
        self._ending.started = start
        for index, client in enumerate(clients):
            # Locust's ids are HOST_<32 hexadecimal digits>.
            name = f"{client.rpartition('_')[0]}-{index}" if self._spread else "local"
            content = {"plan": plan, "start": start, "share": (name, index, len(clients))}
            self._runner.send_message(GO, {**content, "clock": now()}, client)
        gevent.spawn(self._watch)

    def _take_records(self, environment: Any, msg: Any, **_: Any) -> None:
        self._records.writelines(line + "\n" for line in msg.data["lines"])
        self._records.flush()

    def _take_done(self, environment: Any, msg: Any, **_: Any) -> None:
        skew = ClockSkew(least=msg.data["clock"] - now(), most=msg.data["most_skew"])
        self._ending.workers.append(
            WorkerEnding(name=msg.data["name"], limit=msg.data["limit"], skew=skew.seconds)
        )
        self._waiting.discard(msg.node_id if self._spread else "local")

    def _watch(self) -> None:
        """End the run once each worker is done or lost."""
        while self._waiting:
            gevent.sleep(0.05)
            if self._spread:
                self._forget_lost()
        self.end()

    def _forget_lost(self) -> None:
        clients = {client.id: client.state for client in self._runner.clients.all}
        for worker in sorted(self._waiting):
            if clients.get(worker, STATE_MISSING) == STATE_MISSING:
                self._waiting.discard(worker)
                self._ending.lost += 1

    def end(self) -> None:
        """Write down how the run ended and stop Locust and its workers."""
        self._ending.ended = now()
        Path(self._options.ending).write_text(self._ending.model_dump_json(), encoding="utf-8")
        self._records.close()
        self._runner.quit()

    def cut(self) -> None:
        """Stop early: workers record what is under way as unfinished."""
        if self._begun:
            self._runner.send_message(CUT)
        else:
            # Locust would go on waiting for workers. It leads a process group, see locust_process.
            os.killpg(0, signal.SIGKILL)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("leanmoe loadtest")
    group.add_argument("--plan", help="the plan, as JSON")
    group.add_argument("--records", help="file for one JSON line per request")
    group.add_argument("--ending", help="file for how the run ended")
    group.add_argument("--control", type=int, help="descriptor that closes when the run must end")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _wire(environment: Any, runner: Any, **_: Any) -> None:
    options = environment.parsed_options
    is_worker = isinstance(runner, WorkerRunner)
    worker = None if isinstance(runner, MasterRunner) else _Worker.of(environment)
    master = None if is_worker else _Master(runner, options)
    if master is not None:
        environment.events.spawning_complete.add_listener(lambda **_: master.begin())
    # A worker that Locust forked has its master's descriptor too, and leaves it to the master.
    if options.control is not None and (master is not None or not options.processes):
        gevent.spawn(_cut_when_closed, options.control, master or worker)


def _cut_when_closed(control: int, side: Any) -> None:
    """The command that started this process keeps the other end open until it wants an end."""
    gevent.socket.wait_read(control)
    side.cut()
