"""One server's parts put together: of the process that owns the policy, or of one that follows."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from leanmoe_server.api_processes.following import FollowerService, Following
from leanmoe_server.api_processes.process_set import ApiProcess
from leanmoe_server.audit.trail import AuditTrail
from leanmoe_server.control import SkipControl
from leanmoe_server.drain import Drain
from leanmoe_server.engine import Engine
from leanmoe_server.governor.loop import Governor
from leanmoe_server.governor.readings import Readings
from leanmoe_server.in_force import InForce
from leanmoe_server.intake import Intake
from leanmoe_server.metrics import Metrics
from leanmoe_server.occupancy import Occupancy
from leanmoe_server.poller import Poller
from leanmoe_server.process_tree import ProcessTree
from leanmoe_server.pulse import Pulse, work_of
from leanmoe_server.readiness import Readiness
from leanmoe_server.request_counts import RequestCounter
from leanmoe_server.service import OwnerService
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.replay import Shadow
from leanmoe_server.shadow.sampling import Sampler
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from leanmoe_server.tenants.tenants import Tenants
from leanmoe_server.token_rates import TokenRates
from leanmoe_server.watchdog import Watchdog

if TYPE_CHECKING:
    from leanmoe_server.vllm_engine import VllmEngine


def build_service(
    engine: Engine,
    settings: ServeSettings,
    metrics: Metrics,
    tenant_metrics: TenantMetrics,
    place: ApiProcess | None = None,
) -> OwnerService:
    """Of the only API process, or of the first of several."""
    tree = ProcessTree() if place is None else place.tree()
    pulse = Pulse(settings.poll_seconds, work=lambda: work_of(tree.others()))
    readiness = Readiness(pulse)
    trail = AuditTrail(metrics, settings.audit_file)
    control = SkipControl(engine, settings, readiness, pulse, trail)
    drain = Drain(engine, settings.drain_seconds)
    poller = _poller(control, metrics, pulse, readiness, tree)
    metrics.start_from_zero()
    return OwnerService(
        engine=engine,
        readiness=readiness,
        control=control,
        poller=poller,
        drain=drain,
        intake=_intake(engine, settings, drain, place, metrics),
        counter=RequestCounter(engine),
        watchdog=Watchdog(engine, drain),
        tenants=Tenants(settings, tenant_metrics),
        metrics=metrics,
        place=place,
        governor=_governor(settings, control, poller, metrics),
    )


def build_follower(
    engine: Engine,
    settings: ServeSettings,
    metrics: Metrics,
    tenant_metrics: TenantMetrics,
    place: ApiProcess,
) -> FollowerService:
    """Of a process that follows the first."""
    control = InForce(settings)
    following = Following(place, control)
    drain = Drain(engine, settings.drain_seconds)
    return FollowerService(
        engine=engine,
        readiness=following,
        control=control,
        drain=drain,
        intake=_intake(engine, settings, drain, place, metrics),
        counter=RequestCounter(engine),
        watchdog=Watchdog(engine, drain),
        tenants=Tenants(settings, tenant_metrics, following),
        metrics=metrics,
        place=place,
        following=following,
    )


def _intake(
    engine: Engine,
    settings: ServeSettings,
    drain: Drain,
    place: ApiProcess | None,
    metrics: Metrics,
) -> Intake:
    occupancy = Occupancy.alone() if place is None else place.occupancy()
    most = engine.seats() + settings.max_waiting
    return Intake(drain, most, settings.max_body_bytes, occupancy, metrics.observe_refusal)


def _poller(
    control: SkipControl, metrics: Metrics, pulse: Pulse, readiness: Readiness, tree: ProcessTree
) -> Poller:
    return Poller(
        control.snapshot,
        metrics,
        TokenRates(),
        control.settings.poll_seconds,
        pulse=pulse,
        readiness=readiness,
        tree=tree,
    )


def _governor(
    settings: ServeSettings, control: SkipControl, poller: Poller, metrics: Metrics
) -> Governor | None:
    aims = settings.governor
    if aims is None:
        return None
    readings = Readings(lambda: aims.traffic(control.handshake, settings.model.n_experts))
    return Governor(aims, control, poller, readings, metrics)


def watch_quality(service: OwnerService, engine: VllmEngine) -> None:
    """Sample finished answers and replay them, where that was asked for."""
    terms, control = service.settings.shadow, service.control
    if terms is None:
        return
    sampler = Sampler(terms.share, control, random.Random())
    engine.sample_answers(sampler)
    service.sampler = sampler
    occupancy = service.intake.occupancy
    service.shadow = Shadow(
        terms, control, sampler, engine, service.metrics, idle=lambda: not occupancy.requests
    )


def sample_for_owner(service: FollowerService, engine: VllmEngine) -> None:
    """Sample finished answers here, too, for the owner's replays."""
    terms = service.settings.shadow
    if terms is not None:
        sampler = Sampler(terms.share, service.control, random.Random())
        sampler.keep = service.following.keep
        engine.sample_answers(sampler)
