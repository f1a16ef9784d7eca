"""One worker's share of a load: an open loop that keeps its schedule, or a closed one.

An open loop sends when it is time, however slow the answers are. Where the bound on concurrency
holds a request back, the record keeps the time it was due (``scheduled``) beside the time it
went out, and the session counts how often that happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from leanmoe_loadtest.ask import Ask, Asker
from leanmoe_loadtest.clock import now
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import ConcurrencyLimit
from leanmoe_loadtest.stream import Streamer

Keep = Callable[[RequestRecord], None]
# A closed loop's users begin one after another, or the first answers of many would wait for this
# process to connect the others.
_APART_SECONDS, _ALL_WITHIN_SECONDS = 0.002, 1.0


@dataclass(frozen=True)
class Share:
    """Which part of a plan a worker does: every ``count``-th request or user from ``index`` on."""

    name: str
    index: int
    count: int

    def numbers(self, total: int) -> range:
        return range(self.index, total, self.count)


class Session:
    """Sends a share of a plan and gives every record to ``keep``."""

    def __init__(self, plan: Plan, share: Share, api_key: str | None, keep: Keep) -> None:
        self._plan, self._share, self._keep = plan, share, keep
        self._asker = Asker(plan)
        self._streamer = Streamer(plan, api_key)
        self._group = Group()
        slots = len(share.numbers(plan.max_concurrency)) if plan.schedule is not None else 1
        self._slots = BoundedSemaphore(max(slots, 1))
        self._cut = False
        self._held_until = 0.0
        self.limit = ConcurrencyLimit(limit=slots)

    def run(self, start: float) -> None:
        """Send from ``start`` (Unix seconds) on; return when every answer ended or was cut."""
        last = start + self._plan.duration + self._plan.request_seconds
        cutter = gevent.spawn_later(max(last - now(), 0.0), self.cut)
        try:
            if self._plan.schedule is None:
                self._closed_loop(start)
            else:
                self._open_loop(start, self._plan.schedule)
            self._group.join()
        finally:
            cutter.kill()

    def cut(self) -> None:
        """Stop sending; what is under way is recorded as unfinished."""
        self._cut = True
        self._group.kill(block=False)

    def _open_loop(self, start: float, schedule: list[float]) -> None:
        for number in self._share.numbers(len(schedule)):
            due = start + schedule[number]
            ask = self._asker.ask(number)
            self._sleep_until(due)
            if self._cut:
                self._leave_out(ask, due)
            elif self._wait_for_slot(due):
                self._group.start(gevent.Greenlet(self._with_slot, ask, due))
            else:
                self._leave_out(ask, due)

    def _sleep_until(self, due: float) -> None:
        while not self._cut and (left := due - now()) > 0:
            gevent.sleep(min(left, 1.0))

    def _wait_for_slot(self, due: float) -> bool:
        """Take a slot, waiting for one where none is free; false once the session was cut."""
        free = self._slots.acquire(blocking=False)
        # What came due while another waited here is as late as if it had waited itself.
        if not free or due < self._held_until:
            self.limit.hits += 1
            self.limit.first_hit = self.limit.first_hit or now()
        while not free and not self._cut:
            free = self._slots.acquire(timeout=1.0)
            self._held_until = now()
        return not self._cut

    def _with_slot(self, ask: Ask, due: float) -> None:
        try:
            self._send(ask, due)
        finally:
            self._slots.release()

    def _leave_out(self, ask: Ask, due: float) -> None:
        """A request that was due and never went out is not forgotten."""
        if due > now():
            return
        record = self._record(ask, due)
        record.sent, record.error = now(), "held back by --max-concurrency until the end"
        self._keep(record)

    def _closed_loop(self, start: float) -> None:
        users = self._plan.users or 1
        apart = min(_APART_SECONDS, _ALL_WITHIN_SECONDS / users)
        for user in self._share.numbers(users):
            self._sleep_until(start + user * apart)
            self._group.start(gevent.Greenlet(self._user, user, start + self._plan.duration))

    def _user(self, user: int, end: float) -> None:
        """One request after another, each as soon as the last answer ended."""
        users, number = self._plan.users or 1, user
        while now() < end and not self._cut and not self._enough(number):
            self._send(self._asker.ask(number), None)
            number += users

    def _enough(self, number: int) -> bool:
        return self._plan.max_requests is not None and number >= self._plan.max_requests

    def _send(self, ask: Ask, due: float | None) -> None:
        record = self._record(ask, due)
        try:
            self._streamer.run(ask, record)
        except gevent.GreenletExit:
            record.unfinished = True
            raise
        finally:
            self._keep(record)

    def _record(self, ask: Ask, due: float | None) -> RequestRecord:
        return RequestRecord(
            sent=0.0,
            scheduled=due,
            endpoint=self._plan.endpoint,
            level=ask.level,
            prompt=ask.prompt,
            worker=self._share.name,
        )
