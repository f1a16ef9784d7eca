"""Asks the workers what single requests had skipped, many requests in one question."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable

from leanmoe.messages import RequestAssignments, RequestCounts
from leanmoe_server.engine import Engine

logger = logging.getLogger(__name__)

# An answer is not held up for longer; it then does without.
WAIT_SECONDS = 5.0


class RequestCounter:
    """One question at a time is with the workers; what is asked meanwhile goes into the next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[str, asyncio.Future[RequestAssignments | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def counts_of(self, name: str) -> RequestAssignments | None:
        """The account of the request whose answer has this id; ``None`` where none is to be had."""
        loop = asyncio.get_running_loop()
        answer = self._waiting.setdefault(name, loop.create_future())
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        try:
            return await asyncio.wait_for(asyncio.shield(answer), WAIT_SECONDS)
        except TimeoutError:
            return None

    async def _ask(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                found = _of_all_layers(await self._engine.request_counts(list(asked)))
            except Exception as error:
                logger.error("the workers did not say what requests had skipped: %s", error)
                found = {}
            for name, answer in asked.items():
                answer.set_result(found.get(name))


def _of_all_layers(answers: Iterable[RequestCounts]) -> dict[str, RequestAssignments]:
    """Ranks that hold the same layers count the same; those of other layers, or engines, add."""
    parts: dict[str, dict[tuple[int, ...], RequestAssignments]] = defaultdict(dict)
    for answer in answers:
        for name, counts in answer.requests.items():
            parts[name].setdefault((answer.engine, *answer.layers), counts)
    return {
        name: RequestAssignments(
            routed=sum(part.routed for part in held.values()),
            skipped=sum(part.skipped for part in held.values()),
        )
        for name, held in parts.items()
    }
