"""All that belongs to one running server, and where the app keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe_server.control import SkipControl
from leanmoe_server.drain import Drain
from leanmoe_server.engine import Engine
from leanmoe_server.governor.loop import Governor
from leanmoe_server.intake import Intake
from leanmoe_server.poller import Poller
from leanmoe_server.readiness import Readiness
from leanmoe_server.request_counts import RequestCounter
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.replay import Shadow
from leanmoe_server.tenants import Tenants
from leanmoe_server.watchdog import Watchdog

_ATTRIBUTE = "leanmoe"
NOT_SET_UP = "the LeanMoE endpoint plugin was not set up"
SERVICE_ARGUMENT = "leanmoe_service"  # where vLLM's arguments carry it out of the event loop


@dataclass
class Service:
    """The parts that admission and the routes share."""

    engine: Engine
    readiness: Readiness
    control: SkipControl
    poller: Poller
    drain: Drain
    intake: Intake
    counter: RequestCounter
    tenants: Tenants
    watchdog: Watchdog
    governor: Governor | None = None
    shadow: Shadow | None = None

    def describe(self) -> dict[str, Any]:
        """What ``GET /v1/expert_skipping`` shows."""
        governor = None if self.governor is None else self.governor.describe()
        shadow = None if self.shadow is None else self.shadow.describe()
        return {**self.control.describe(), "governor": governor, "shadow": shadow}

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


def service_of(app: Any) -> Service | None:
    """The service of a Starlette app, or ``None`` before it was set up."""
    service = getattr(app.state, _ATTRIBUTE, None)
    return service if isinstance(service, Service) else None


def keep_service(state: Any, service: Service) -> None:
    """Attach ``service`` to an app's state."""
    setattr(state, _ATTRIBUTE, service)
