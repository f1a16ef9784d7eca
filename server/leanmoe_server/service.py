"""All that belongs to one running server, and where the app keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from leanmoe_server.control import SkipControl
from leanmoe_server.drain import Drain
from leanmoe_server.engine import Engine
from leanmoe_server.governor.loop import Governor
from leanmoe_server.in_force import InForce
from leanmoe_server.intake import Intake
from leanmoe_server.metrics import Metrics
from leanmoe_server.poller import Poller
from leanmoe_server.readiness import Readiness
from leanmoe_server.request_counts import RequestCounter
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.replay import Shadow
from leanmoe_server.shadow.sampling import Sampler
from leanmoe_server.tenants.tenants import Tenants
from leanmoe_server.watchdog import Watchdog

_ATTRIBUTE = "leanmoe"
NOT_SET_UP = "the LeanMoE endpoint plugin was not set up"
# Where vLLM's arguments carry what is ours: which of several API processes this is, what those
# share, and the service out of the event loop.
PLACE_ARGUMENT = "leanmoe_place"
PROCESSES_ARGUMENT = "leanmoe_processes"
SERVICE_ARGUMENT = "leanmoe_service"

METRICS_MAX_AGE_SECONDS = 0.1
METRICS_WAIT_SECONDS = 2.0


class Gate(Protocol):
    """Whether requests may be answered."""

    @property
    def reasons(self) -> list[str]:
        """Why not; empty when they may."""
        ...


class Place(Protocol):
    """Which of several API processes this is, of one server."""

    @property
    def index(self) -> int:
        """Process 0 owns the policy."""
        ...

    def listens(self) -> None:
        """It takes connections from now on."""
        ...


@dataclass
class Service(ABC):
    """The parts that admission and the routes of an API process share."""

    engine: Engine
    readiness: Gate
    control: InForce
    drain: Drain
    intake: Intake
    counter: RequestCounter
    tenants: Tenants
    watchdog: Watchdog
    metrics: Metrics
    place: Place | None

    @abstractmethod
    async def refresh_metrics(self) -> None:
        """Bring what a scrape will read up to date, within a few seconds."""

    def start(self, close: Callable[[], None]) -> None:
        """The server is up: run what runs beside requests; ``close`` ends it."""
        self.drain.on_signals(close, alone=self.place is None)
        self.watchdog.start(close)
        if self.place is not None:
            self.place.listens()

    @property
    def standing(self) -> dict[str, Any]:
        """Which of several API processes this is, for ``/ready``."""
        if self.place is None:
            return {}
        return {"api_process": self.place.index, "owns_policy": self.place.index == 0}

    @property
    def settings(self) -> ServeSettings:
        """The one copy, to which control adds what the workers found."""
        return self.control.settings

    @property
    def blocked(self) -> list[str]:
        """Why inference must not be answered now; empty when it may."""
        if self.drain.draining:
            return ["the server is stopping"]
        if self.engine.dead():
            return ["vLLM's engine is dead, see the log; restart the server"]
        return self.readiness.reasons


@dataclass
class OwnerService(Service):
    """Of the process that owns the policy: the only one, or the first of several."""

    control: SkipControl
    readiness: Readiness
    poller: Poller
    governor: Governor | None = None
    shadow: Shadow | None = None
    sampler: Sampler | None = None

    async def refresh_metrics(self) -> None:
        await self.poller.refresh(METRICS_MAX_AGE_SECONDS, METRICS_WAIT_SECONDS)
        self.metrics.state_age()

    def start(self, close: Callable[[], None]) -> None:
        super().start(close)
        self.poller.start()
        if self.governor is not None:
            self.governor.start()
        if self.shadow is not None:
            self.shadow.start()

    def describe(self) -> dict[str, Any]:
        """What ``GET /v1/expert_skipping`` shows."""
        governor = None if self.governor is None else self.governor.describe()
        shadow = None if self.shadow is None else self.shadow.describe()
        return {**self.control.describe(), "governor": governor, "shadow": shadow}


def service_of(app: Any) -> Service | None:
    """The service of a Starlette app, or ``None`` before it was set up."""
    service = getattr(app.state, _ATTRIBUTE, None)
    return service if isinstance(service, Service) else None


def keep_service(state: Any, service: Service) -> None:
    """Attach ``service`` to an app's state."""
    setattr(state, _ATTRIBUTE, service)
