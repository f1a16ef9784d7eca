"""One process that follows, as the owner of the policy sees it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from leanmoe_server.api_processes.channel import Channel, ChannelError, Handler
from leanmoe_server.api_processes.notices import PolicyState
from leanmoe_server.api_processes.process_set import ApiProcess
from leanmoe_server.api_processes.silence import named, pulse_of


class Follower:
    """Told every state; what it acknowledged last is what it applies."""

    def __init__(
        self, place: ApiProcess, index: int, link: socket.socket, handlers: Mapping[str, Handler]
    ) -> None:
        self.index = index
        self.channel = Channel(link, handlers)
        self._pulse = pulse_of(place, index)
        self._told: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why it may not know what holds; ``None`` before it follows at all."""
        if self.channel.closed:
            return f"{named(self.index)} ended"
        return self._pulse.problem

    async def tell(self, state: PolicyState, seconds: float) -> None:
        """Return when it knows ``state``, or after ``seconds``."""
        task = asyncio.ensure_future(self._tell(state))
        self._told = task
        await asyncio.wait([task], timeout=seconds)

    async def remind(self, state: PolicyState) -> None:
        """Tell it the same again, unless it has still to answer to the last."""
        if self._told is None or self._told.done():
            await self.tell(state, 0)

    async def _tell(self, state: PolicyState) -> None:
        try:
            await self.channel.ask("state", state.model_dump(mode="json"))
        except ChannelError:
            return  # the link is closed, and ``problem`` says so
        self._pulse.beat()
