"""Ends the server when its engine is dead: nothing that a client holds open may delay that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from leanmoe_server.drain import Drain
from leanmoe_server.engine import Engine
from leanmoe_server.stopping import end_within

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
# From the death of the engine to the end of the process, at most.
END_SECONDS = 8.0


class Watchdog:
    """Looks at the engine until it is dead, once the server has started."""

    def __init__(self, engine: Engine, drain: Drain) -> None:
        self._engine = engine
        self._drain = drain
        self._task: asyncio.Task[None] | None = None

    def start(self, close: Callable[[], None]) -> None:
        """Call ``close`` when the engine is dead, and end the process if that does not."""
        self._task = asyncio.get_running_loop().create_task(self._watch(close))

    async def _watch(self, close: Callable[[], None]) -> None:
        while not self._engine.dead():
            await asyncio.sleep(_LOOK_SECONDS)
        if self._drain.draining:
            return  # it was told to end, and so was the server
        logger.error("vLLM's engine is dead: the server ends")
        end_within(END_SECONDS, 1)
        close()
