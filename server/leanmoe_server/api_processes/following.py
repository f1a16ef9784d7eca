"""A process that follows: what it knows of the policy, and what it asks the owner for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from leanmoe_server.api_processes.channel import Channel, ChannelError
from leanmoe_server.api_processes.notices import (
    ControlAnswer,
    ControlRequest,
    PolicyState,
    SampledAnswer,
    Use,
)
from leanmoe_server.api_processes.process_set import OWNER, ApiProcess
from leanmoe_server.api_processes.silence import named, pulse_of
from leanmoe_server.in_force import InForce
from leanmoe_server.keys.keys import KeyLimits
from leanmoe_server.service import METRICS_WAIT_SECONDS, Service
from leanmoe_server.shadow.sampling import Answer
from leanmoe_server.tenants.tenant_usage import Excess

_GLANCE_SECONDS = 0.5


class Following:
    """The link to the owner of the policy, and whether it holds: a ``Gate``, and a ``Usage``."""

    def __init__(self, place: ApiProcess, control: InForce) -> None:
        self._control = control
        self._channel = Channel(place.links[0], {"state": self._heard})
        self._pulse = pulse_of(place, OWNER)
        self._state: PolicyState | None = None
        self._started = asyncio.Event()

    async def open(self) -> None:
        """Follow; return when the first policy is in force or cannot be, or the owner is gone."""
        await self._channel.open()
        while not self._started.is_set() and self.problem is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._started.wait(), _GLANCE_SECONDS)

    @property
    def problem(self) -> str | None:
        """Why nothing is known of the policy any more."""
        return f"{named(OWNER)} ended" if self._channel.closed else self._pulse.problem

    @property
    def reasons(self) -> list[str]:
        """Why nothing may be answered: the owner's reasons, or that it is silent."""
        if (problem := self.problem) is not None:
            return [f"{problem}; no level can be stated without it"]
        if self._state is None:
            return [f"{named(OWNER)} has not said yet what holds"]
        return self._state.reasons

    @property
    def read_at(self) -> float | None:
        """When the workers' counters were last read, on the monotonic clock."""
        return None if self._state is None else self._state.read_at

    async def _heard(self, said: Any) -> None:
        state = PolicyState.model_validate(said)
        before, self._state = self._state, state
        if before is None or state.level != before.level:
            self._control.spans.change(state.level)
        self._control.current, self._control.governed = state.current, state.governed
        unavailable = state.request_levels_unavailable
        if unavailable != self._control.settings.request_levels_unavailable:
            self._control.settings = replace(
                self._control.settings, request_levels_unavailable=unavailable
            )
        self._pulse.beat()
        if state.started:
            self._started.set()

    async def control(self, asked: ControlRequest) -> ControlAnswer:
        """The owner's answer, however long it takes while the owner is there."""
        task = asyncio.ensure_future(self._channel.ask("control", asked.model_dump(mode="json")))
        return ControlAnswer.model_validate(await self._while_it_lives(task))

    async def _while_it_lives(self, asked: asyncio.Task[Any]) -> Any:
        """What is answered; ``ChannelError`` once the owner is silent. It may still answer."""
        while not (await asyncio.wait([asked], timeout=_GLANCE_SECONDS))[0]:
            if (problem := self.problem) is not None:
                raise ChannelError(problem)
        return asked.result()

    async def refresh(self) -> float | None:
        """Have the owner read the workers' counters; when they were last read."""
        try:
            found = await self._channel.ask("refresh", None, METRICS_WAIT_SECONDS)
        except ChannelError:
            return self.read_at
        return None if found is None else float(found)

    async def begin(self, name: str, limits: KeyLimits) -> Excess | None:
        if not limits.counted:
            return None
        task = asyncio.ensure_future(self._channel.ask("begin", _use(name, limits)))
        try:
            found = await self._while_it_lives(task)
        except BaseException:
            # What is counted in all the same, later, is over by then.
            task.add_done_callback(lambda done: self._undo(done, name, limits))
            raise
        return None if found is None else Excess(**found)

    def _undo(self, begun: asyncio.Task[Any], name: str, limits: KeyLimits) -> None:
        if not begun.cancelled() and begun.exception() is None and begun.result() is None:
            self.end(name, limits)

    def end(self, name: str, limits: KeyLimits) -> None:
        if limits.counted:
            self._channel.tell("end", _use(name, limits))

    async def charge(self, name: str, limits: KeyLimits, tokens: int) -> None:
        if limits.tokens_per_minute is not None:
            self._channel.tell("charge", _use(name, limits, tokens))

    def keep(self, one: Answer) -> None:
        """Hand a sampled answer to the owner, which replays it."""
        level = one.level
        said = SampledAnswer(
            prompt=list(one.prompt),
            answer=list(one.answer),
            hundredths=level.hundredths,
            deterministic=level.deterministic,
        )
        self._channel.tell("sampled", said.model_dump(mode="json"))


def _use(name: str, limits: KeyLimits, tokens: int = 0) -> dict[str, Any]:
    use = Use(
        name=name,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrent_requests=limits.concurrent_requests,
        tokens=tokens,
    )
    return use.model_dump(mode="json")


@dataclass
class FollowerService(Service):
    """Of a process that follows; what its routes do not know, the owner answers."""

    following: Following

    async def refresh_metrics(self) -> None:
        self.metrics.read_at = await self.following.refresh()
        self.metrics.state_age()
