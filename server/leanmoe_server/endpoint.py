"""The ``vllm.endpoint_plugins`` entry: our routes in vLLM's app, our state beside its own."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI

from leanmoe.wire import CONTROL_PATH, HISTORY_PATH, READY_PATH, ROLLBACK_PATH, STATUS_PATH
from leanmoe_server.api_document import add_to_document
from leanmoe_server.api_processes.forwarding import Routes, by_owner, respond
from leanmoe_server.api_processes.owner import Owner
from leanmoe_server.api_processes.process_set import OWNER, ApiProcess
from leanmoe_server.assembly import build_follower, build_service, sample_for_owner, watch_quality
from leanmoe_server.console.pages import add_pages
from leanmoe_server.console.recorder import Recorder
from leanmoe_server.console.status import record_readings, show_status
from leanmoe_server.metrics import Metrics
from leanmoe_server.request_level import RequestLevelMiddleware
from leanmoe_server.routes import (
    change_policy,
    ready,
    roll_back_policy,
    show_history,
    show_policy,
)
from leanmoe_server.schema import CHANGE_SCHEMA, ROLLBACK_SCHEMA
from leanmoe_server.service import (
    PLACE_ARGUMENT,
    SERVICE_ARGUMENT,
    OwnerService,
    Service,
    keep_service,
)
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from leanmoe_server.tenants.tenant_store import keep_responses_apart

logger = logging.getLogger(__name__)
# What one API process answers for all.
CONTROL_ROUTES: Routes = {
    ("GET", CONTROL_PATH): show_policy,
    ("GET", HISTORY_PATH): show_history,
    ("PUT", CONTROL_PATH): change_policy,
    ("POST", ROLLBACK_PATH): roll_back_policy,
    ("GET", STATUS_PATH): show_status,
}


def _body(schema: dict[str, Any], required: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


_BODIES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("PUT", CONTROL_PATH): _body(CHANGE_SCHEMA),
    ("POST", ROLLBACK_PATH): _body(ROLLBACK_SCHEMA, required=False),
}


class LeanMoEEndpoint:
    """What vLLM calls while it builds the app and after the engine is up."""

    name = "leanmoe"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; ``access.py`` says whose they are."""
        app.add_api_route(READY_PATH, ready, methods=["GET"])
        for (method, path), route in CONTROL_ROUTES.items():
            # Bodies are read by the route, so that one is refused in a sentence and never past
            # its length.
            extra = _BODIES.get((method, path))
            app.add_api_route(path, by_owner(route), methods=[method], openapi_extra=extra)
        add_pages(app)
        add_to_document(app)
        # vLLM adds its own middleware, and our outer ones, around this one.
        app.add_middleware(RequestLevelMiddleware)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Handshake with every worker and set the first level, before the port listens.

        Where several API processes serve one engine, the first does that and the others wait.
        """
        place = getattr(args, PLACE_ARGUMENT, None)
        if place is None or place.index == OWNER:
            await _own(engine_client, state, args, place)
        else:
            await _follow(engine_client, state, args, place)


async def _own(engine_client: Any, state: Any, args: Namespace, place: ApiProcess | None) -> None:
    # vLLM is only needed where it already runs.
    from leanmoe_server.vllm_engine import VllmEngine

    engine = VllmEngine(engine_client)
    if (slow := engine.slow_format) is not None:
        logger.warning(slow)
    service = build_service(engine, args.leanmoe, Metrics(), TenantMetrics(), place)
    watch_quality(service, engine)
    # Around the sampler: by then a request has the level that it keeps.
    engine.generate_for_tenants(service.control)
    _keep(state, args, service)
    record_readings(state, service, Recorder())
    await _start(service, state, place)
    service.metrics.observe_handshake(service.control.handshake, service.control.wrapped)


async def _start(service: OwnerService, state: Any, place: ApiProcess | None) -> None:
    if place is None:
        await service.control.start()
        return
    owner = Owner(place, service, partial(respond, state, CONTROL_ROUTES))
    await owner.open()
    await service.control.start()
    await owner.started()


async def _follow(engine_client: Any, state: Any, args: Namespace, place: ApiProcess) -> None:
    from leanmoe_server.vllm_engine import VllmEngine

    engine = VllmEngine(engine_client)
    metrics = TenantMetrics(counts_files=False)
    service = build_follower(engine, args.leanmoe, Metrics(), metrics, place)
    sample_for_owner(service, engine)
    engine.generate_for_tenants(service.control)
    _keep(state, args, service)
    await service.following.open()


def _keep(state: Any, args: Namespace, service: Service) -> None:
    keep_service(state, service)
    keep_responses_apart(state.openai_serving_responses)
    setattr(args, SERVICE_ARGUMENT, service)
