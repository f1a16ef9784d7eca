"""The ``vllm.endpoint_plugins`` entry: our routes in vLLM's app, our state beside its own."""

from __future__ import annotations

import random
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from leanmoe.wire import CONTROL_PATH, HISTORY_PATH, READY_PATH, ROLLBACK_PATH, STATUS_PATH
from leanmoe_server.api_document import add_to_document
from leanmoe_server.audit.trail import AuditTrail
from leanmoe_server.console.pages import add_pages
from leanmoe_server.console.recorder import Recorder
from leanmoe_server.console.status import add_status, record_readings
from leanmoe_server.control import SkipControl
from leanmoe_server.drain import Drain
from leanmoe_server.engine import Engine
from leanmoe_server.governor.loop import Governor
from leanmoe_server.governor.readings import Readings
from leanmoe_server.intake import Intake
from leanmoe_server.metrics import Metrics
from leanmoe_server.poller import Poller
from leanmoe_server.pulse import Pulse
from leanmoe_server.readiness import Readiness
from leanmoe_server.request_counts import RequestCounter
from leanmoe_server.request_level import RequestLevelMiddleware
from leanmoe_server.routes import (
    change_policy,
    ready,
    roll_back_policy,
    show_history,
    show_policy,
)
from leanmoe_server.schema import CHANGE_SCHEMA, ROLLBACK_SCHEMA
from leanmoe_server.service import SERVICE_ARGUMENT, Service, keep_service
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.replay import Shadow
from leanmoe_server.shadow.sampling import Sampler
from leanmoe_server.tenant_metrics import TenantMetrics
from leanmoe_server.tenants import Tenants
from leanmoe_server.token_rates import TokenRates
from leanmoe_server.watchdog import Watchdog

if TYPE_CHECKING:
    from leanmoe_server.vllm_engine import VllmEngine


def build_service(
    engine: Engine, settings: ServeSettings, metrics: Metrics, tenant_metrics: TenantMetrics
) -> Service:
    """Put the parts of one server together around ``engine``."""
    seconds = settings.poll_seconds
    pulse = Pulse(seconds)
    readiness = Readiness(pulse)
    trail = AuditTrail(metrics, settings.audit_file)
    control = SkipControl(engine, settings, readiness, pulse, trail)
    drain = Drain(engine, settings.drain_seconds)
    poller = Poller(
        control.snapshot, metrics, TokenRates(), seconds, pulse=pulse, readiness=readiness
    )
    return Service(
        engine=engine,
        readiness=readiness,
        control=control,
        poller=poller,
        drain=drain,
        intake=Intake(drain, engine.seats() + settings.max_waiting, settings.max_body_bytes),
        counter=RequestCounter(engine),
        watchdog=Watchdog(engine, drain),
        tenants=Tenants(settings, tenant_metrics),
        governor=_governor(settings, control, poller, metrics),
    )


def _governor(
    settings: ServeSettings, control: SkipControl, poller: Poller, metrics: Metrics
) -> Governor | None:
    aims = settings.governor
    if aims is None:
        return None
    readings = Readings(lambda: aims.traffic(control.handshake, settings.model.n_experts))
    return Governor(aims, control, poller, readings, metrics)


def _watch_quality(service: Service, engine: VllmEngine, metrics: Metrics) -> None:
    """Sample finished answers and replay them, where that was asked for."""
    terms, control = service.settings.shadow, service.control
    if terms is None:
        return
    sampler = Sampler(terms.share, control, random.Random())
    engine.sample_answers(sampler)
    service.shadow = Shadow(
        terms, control, sampler, engine, metrics, idle=lambda: not service.drain.in_flight
    )


def _body(schema: dict[str, Any], required: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


class LeanMoEEndpoint:
    """What vLLM calls while it builds the app and after the engine is up."""

    name = "leanmoe"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; ``access.py`` says whose they are."""
        app.add_api_route(READY_PATH, ready, methods=["GET"])
        app.add_api_route(CONTROL_PATH, show_policy, methods=["GET"])
        app.add_api_route(HISTORY_PATH, show_history, methods=["GET"])
        # Read by itself, so that a body is refused in one sentence and never past its length.
        app.add_api_route(
            CONTROL_PATH, change_policy, methods=["PUT"], openapi_extra=_body(CHANGE_SCHEMA)
        )
        app.add_api_route(
            ROLLBACK_PATH,
            roll_back_policy,
            methods=["POST"],
            openapi_extra=_body(ROLLBACK_SCHEMA, required=False),
        )
        add_status(app, STATUS_PATH)
        add_pages(app)
        add_to_document(app)
        # vLLM adds its own middleware, and our outer ones, around this one.
        app.add_middleware(RequestLevelMiddleware)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Handshake with every worker and set the first level, before the port listens."""
        # vLLM is only needed where it already runs.
        from leanmoe_server.vllm_engine import VllmEngine

        metrics = Metrics()
        engine = VllmEngine(engine_client)
        service = build_service(engine, args.leanmoe, metrics, TenantMetrics())
        _watch_quality(service, engine, metrics)
        # Around the sampler: by then a request has the level that it keeps.
        engine.generate_for_tenants(service.control)
        keep_service(state, service)
        record_readings(state, service, Recorder())
        setattr(args, SERVICE_ARGUMENT, service)
        await service.control.start()
        metrics.observe_handshake(service.control.handshake, service.control.wrapped)
