"""A stop that lets answers finish: count what runs, refuse what comes, then close.

First signal: wait up to the deadline, then end what still runs with
``finish_reason: abort``. Second signal: end it at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from leanmoe_server.engine import Engine

logger = logging.getLogger(__name__)
ABORT_SECONDS = 5.0


class Drain:
    """Counts requests in flight and ends the server when they are done."""

    def __init__(self, engine: Engine, deadline_seconds: float) -> None:
        self._engine = engine
        self._deadline_seconds = deadline_seconds
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        # What has not arrived by then does not any more.
        self.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.in_flight = 0

    @property
    def draining(self) -> bool:
        return self._task is not None

    def enter(self) -> None:
        """A request began."""
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request's last byte is out, or its client is gone."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    def on_signals(self, close: Callable[[], None], alone: bool = True) -> None:
        """Drain, then call ``close``, when this process is told to stop.

        One of several is told by SIGTERM of the process that started it; a terminal's Ctrl-C
        reaches all of them, and counts there.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.begin, close)
        if alone:
            loop.add_signal_handler(signal.SIGINT, self.begin, close)
        else:
            loop.add_signal_handler(signal.SIGINT, lambda: None)

    def begin(self, close: Callable[[], None]) -> None:
        """Start draining; called again, stop waiting."""
        self.stopping.set()
        if self._task is None:
            logger.warning(
                "stopping: %d requests in flight, up to %s s",
                self.in_flight,
                self._deadline_seconds,
            )
            self._task = asyncio.get_running_loop().create_task(self._run(close))
        else:
            self._hurry.set()

    async def _run(self, close: Callable[[], None]) -> None:
        try:
            if not await self._idle_within(self._deadline_seconds):
                logger.warning("stopping: ending %d requests that still run", self.in_flight)
                await asyncio.wait_for(self._engine.abort_all(), ABORT_SECONDS)
                self._hurry.clear()
                await self._idle_within(ABORT_SECONDS)
        except Exception as error:
            logger.error("stopping: requests could not be ended cleanly: %s", error)
        finally:
            close()

    async def _idle_within(self, seconds: float) -> bool:
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._idle.is_set()
