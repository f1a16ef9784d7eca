"""What the process that owns the policy does for those that follow it.

It tells them every state and waits until they know it, answers what clients ask of the policy
through them, and counts what the holders of keys use in all processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from leanmoe.policy import EXACT, RequestLevel
from leanmoe_server.api_processes.channel import Handler
from leanmoe_server.api_processes.follower import Follower
from leanmoe_server.api_processes.notices import (
    ControlAnswer,
    ControlRequest,
    PolicyState,
    SampledAnswer,
    Use,
)
from leanmoe_server.api_processes.process_set import ApiProcess
from leanmoe_server.api_processes.silence import BEAT_SECONDS
from leanmoe_server.keys.keys import KeyLimits
from leanmoe_server.service import OwnerService
from leanmoe_server.shadow.sampling import Answer

# A change waits so long for a process to say that it knows. One that hangs reads what it was told
# when it goes on, before it answers anybody.
KNOWN_SECONDS = 5.0
Respond = Callable[[ControlRequest], Awaitable[ControlAnswer]]


class Owner:
    """The ``Audience`` of the policy: all other API processes."""

    def __init__(self, place: ApiProcess, service: OwnerService, respond: Respond) -> None:
        self._service, self._respond = service, respond
        handlers: dict[str, Handler] = {
            "control": self._control,
            "refresh": self._refresh,
            "begin": self._begin,
            "end": self._end,
            "charge": self._charge,
            "sampled": self._sampled,
        }
        self._followers = [
            Follower(place, index, link, handlers) for index, link in enumerate(place.links, 1)
        ]
        self._coming: float | None = None
        self._started = False
        self._beats: asyncio.Task[None] | None = None
        service.control.audience = self
        service.readiness.besides = self.problems

    def problems(self) -> list[str]:
        """Of every process that does not follow."""
        found = [follower.problem for follower in self._followers]
        return [problem for problem in found if problem is not None]

    async def open(self) -> None:
        """Tell the others how things are, from now on."""
        for follower in self._followers:
            await follower.channel.open()
        self._beats = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        while True:
            state = self._state()
            for follower in self._followers:
                await follower.remind(state)
            await asyncio.sleep(BEAT_SECONDS)

    async def started(self) -> None:
        """The first policy is in force, or cannot be: the others may take requests."""
        self._started = True
        await self.publish()

    async def announce(self, level: float) -> None:
        self._coming = level
        await self._tell_all()

    async def publish(self) -> None:
        self._coming = None
        await self._tell_all()

    async def _tell_all(self) -> None:
        state = self._state()
        # Who has not begun yet hears it when it does.
        seconds = KNOWN_SECONDS if self._started else 0.0
        await asyncio.gather(*(one.tell(state, seconds) for one in self._followers))

    def _state(self) -> PolicyState:
        service, control = self._service, self._service.control
        applied = EXACT if control.current is None else control.current.level
        return PolicyState(
            level=applied if self._coming is None else self._coming,
            current=control.current,
            governed=control.governed,
            reasons=service.blocked,
            started=self._started,
            request_levels_unavailable=control.settings.request_levels_unavailable,
            read_at=service.metrics.read_at,
        )

    async def _control(self, asked: Any) -> Any:
        answer = await self._respond(ControlRequest.model_validate(asked))
        return answer.model_dump(mode="json")

    async def _refresh(self, _: Any) -> float | None:
        await self._service.refresh_metrics()
        return self._service.metrics.read_at

    async def _begin(self, said: Any) -> Any:
        use = Use.model_validate(said)
        excess = await self._service.tenants.usage.begin(use.name, limits_of(use))
        return None if excess is None else asdict(excess)

    async def _end(self, said: Any) -> None:
        use = Use.model_validate(said)
        self._service.tenants.usage.end(use.name, limits_of(use))

    async def _charge(self, said: Any) -> None:
        use = Use.model_validate(said)
        await self._service.tenants.usage.charge(use.name, limits_of(use), use.tokens)

    async def _sampled(self, said: Any) -> None:
        one = SampledAnswer.model_validate(said)
        level = RequestLevel(one.hundredths, one.deterministic)
        if self._service.sampler is not None:
            self._service.sampler.keep(Answer(tuple(one.prompt), tuple(one.answer), level))


def limits_of(use: Use) -> KeyLimits:
    """The limits that a use is counted against."""
    return KeyLimits(
        requests_per_minute=use.requests_per_minute,
        tokens_per_minute=use.tokens_per_minute,
        concurrent_requests=use.concurrent_requests,
    )
