"""API processes that follow the owner of the policy, over the sockets that they share."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from leanmoe.policy import RequestLevel
from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH, HISTORY_PATH
from leanmoe_server.admission import Admission
from leanmoe_server.api_processes.following import FollowerService
from leanmoe_server.api_processes.forwarding import respond
from leanmoe_server.api_processes.owner import Owner
from leanmoe_server.api_processes.process_set import ProcessSet
from leanmoe_server.assembly import build_follower, build_service
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.door import Door
from leanmoe_server.endpoint import CONTROL_ROUTES, LeanMoEEndpoint
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.keys.key_source import key_source
from leanmoe_server.keys.keys import KeyLimits
from leanmoe_server.metrics import Metrics
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import PolicyChange, Target
from leanmoe_server.service import OwnerService, Service, keep_service
from leanmoe_server.settings import ServeSettings
from leanmoe_server.shadow.sampling import Answer, Sampler
from leanmoe_server.tenants.tenant_metrics import TenantMetrics

ADMIN_KEY = "s3cret-admin-of-the-tests"
ADMIN = Origin(Cause.ADMIN, "admin")
pytestmark = pytest.mark.anyio


@dataclass
class Pair:
    """An owner and one that follows it, each with its app, in one event loop."""

    engine: FakeEngine
    owner: OwnerService
    follower: FollowerService
    audience: Owner
    apps: list[FastAPI]

    def client(self, index: int, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.apps[index], client=("192.0.2.7", 50000))
        sent = {ADMIN_HEADER: ADMIN_KEY, **headers}
        return httpx.AsyncClient(transport=transport, base_url="http://leanmoe", headers=sent)

    async def change(self, level: float) -> None:
        await self.owner.control.change(PolicyChange(target=Target(level=level)), ADMIN)


def app_of(service: Service) -> FastAPI:
    app = FastAPI()
    LeanMoEEndpoint().attach_router(app)
    app.add_middleware(Admission)
    app.add_middleware(Door)
    keep_service(app.state, service)
    return app


@pytest.fixture
def pair(skip_model: SkipModel) -> Callable[[], object]:
    @asynccontextmanager
    async def build() -> AsyncIterator[Pair]:
        keys = key_source(None, None, {"LEANMOE_ADMIN_KEY": ADMIN_KEY})
        settings = ServeSettings(model=skip_model, keys=keys)
        here = ProcessSet(2)
        # As another process has them: ends of its own.
        there = copy.copy(here)
        there.links = [(one.dup(), two.dup()) for one, two in here.links]
        engine, root = FakeEngine(), os.getpid()
        owner, follower = (
            make(engine, settings, Metrics(registry), TenantMetrics(registry), place)
            for make, registry, place in (
                (build_service, CollectorRegistry(), here.take(0, root, root)),
                (build_follower, CollectorRegistry(), there.take(1, root, root)),
            )
        )
        apps = [app_of(owner), app_of(follower)]
        audience = Owner(owner.place, owner, partial(respond, apps[0].state, CONTROL_ROUTES))
        await audience.open()
        opening = asyncio.ensure_future(follower.following.open())
        await asyncio.sleep(0)
        assert follower.blocked == [
            "API process 0, which owns the policy, has not said yet what holds"
        ]
        await owner.control.start()
        assert not opening.done()
        await audience.started()
        await opening
        yield Pair(engine, owner, follower, audience, apps)

    return build


async def test_what_holds_is_known_everywhere_when_a_change_returns(pair) -> None:
    async with pair() as both:
        assert both.follower.blocked == [] and both.follower.control.current.level == 0
        with both.follower.control.spans.follow() as answer:
            await both.change(1.0)
            assert both.follower.control.current == both.owner.control.current
            # An answer that is being made says that it may have skipped.
            assert answer.describe() == {"level": 1, "from": 0, "to": 1}


async def test_a_process_knows_a_level_before_any_worker_applies_it(pair) -> None:
    async with pair() as both:
        seen = []

        async def set_policy(update):
            with both.follower.control.spans.follow() as answer:
                seen.append(answer.first)
            return await type(both.engine).set_policy(both.engine, update)

        both.engine.set_policy = set_policy
        await both.change(1.0)
        assert seen == [1.0]


async def test_the_governor_s_level_and_secrets_are_the_same_everywhere(pair) -> None:
    async with pair() as both:
        control = both.owner.control
        await control.govern(0.5, None, Origin(Cause.GOVERNOR, "governor"), control.changes)
        assert both.follower.control.default_level == RequestLevel(50)
        assert both.follower.control.request_key == control.request_key
        assert "secret" not in repr(both.owner.settings)


async def test_a_change_that_failed_makes_all_unready(pair) -> None:
    async with pair() as both:
        both.engine.workers[0].deaf = True
        async with both.client(1) as client:
            answer = await client.put(CONTROL_PATH, json={"level": 1})
            assert answer.status_code == 503
            ready = await client.get("/ready")
        assert (
            ready.status_code == 503 and "did not reach every worker" in ready.json()["reasons"][0]
        )
        assert ready.json()["api_process"] == 1 and ready.json()["owns_policy"] is False


async def test_control_routes_are_the_owner_s_with_caller_peer_and_query(pair) -> None:
    async with pair() as both, both.client(0) as own, both.client(1) as other:
        changed = await other.put(CONTROL_PATH, json={"level": 1, "reason": "why"})
        assert changed.status_code == 200 and both.owner.control.current.level == 1
        history = await other.get(f"{HISTORY_PATH}?limit=1")
        assert history.json() == (await own.get(f"{HISTORY_PATH}?limit=1")).json()
        (change,) = history.json()["changes"]
        assert (change["who"], change["peer"], change["reason"]) == ("admin", "192.0.2.7", "why")
        bad = await other.get(f"{HISTORY_PATH}?limit=x")
        assert bad.status_code == 400
        long = await other.put(CONTROL_PATH, content=b"x" * 200_000)
        assert long.status_code == 413
        nobody = await other.put(CONTROL_PATH, json={"level": 0}, headers={ADMIN_HEADER: "x"})
        assert nobody.status_code == 401 and both.owner.control.current.level == 1


async def test_a_lost_owner_makes_a_process_unready_and_says_so(pair) -> None:
    async with pair() as both:
        for link in both.owner.place.links:
            link.close()
        both.audience._followers[0].channel._writer.close()
        while not both.follower.blocked:
            await asyncio.sleep(0)
        async with both.client(1) as client:
            ready = (await client.get("/ready")).json()
            assert "API process 0, which owns the policy, ended" in ready["reasons"][0]
            answer = await client.get(CONTROL_PATH)
            assert answer.status_code == 503 and "gone" in answer.json()["error"]["message"]
            assert (await client.get("/metrics")).status_code == 404  # it waits for nobody


async def test_a_process_that_ends_makes_the_owner_unready(pair) -> None:
    async with pair() as both:
        both.follower.following._channel._writer.close()
        while not both.owner.blocked:
            await asyncio.sleep(0)
        assert both.owner.blocked == ["API process 1 ended"]
        # It holds up no change.
        await both.change(1.0)


async def test_limits_are_counted_once_for_all(pair) -> None:
    async with pair() as both:
        ours, theirs = both.owner.tenants.usage, both.follower.tenants.usage
        one = KeyLimits(concurrent_requests=1)
        assert await theirs.begin("alice", one) is None
        assert (await ours.begin("alice", one)).limit == "concurrent_requests"
        theirs.end("alice", one)
        while (refused := await ours.begin("alice", one)) is not None:
            await asyncio.sleep(0)
        assert refused is None
        ours.end("alice", one)
        few = KeyLimits(requests_per_minute=1, tokens_per_minute=5)
        assert await theirs.begin("bob", few) is None
        assert (await ours.begin("bob", few)).limit == "requests_per_minute"
        await theirs.charge("carol", few, 6)
        while await ours.begin("carol", replace(few, requests_per_minute=None)) is None:
            await asyncio.sleep(0)
        # Nobody is asked about a key without limits.
        assert await theirs.begin("dave", KeyLimits(max_level=0.5)) is None


async def test_a_request_that_gives_up_while_it_asks_is_not_counted_on(pair) -> None:
    async with pair() as both:
        one = KeyLimits(concurrent_requests=1)
        usage = both.follower.tenants.usage
        begun = asyncio.ensure_future(usage.begin("alice", one))
        await asyncio.sleep(0)
        begun.cancel()
        while both.owner.tenants.usage._running["alice"] == 0:
            await asyncio.sleep(0)
        while both.owner.tenants.usage._running["alice"] == 1:
            await asyncio.sleep(0)
        assert await usage.begin("alice", one) is None


async def test_places_and_bytes_are_those_of_all_processes(pair) -> None:
    async with pair() as both:
        both.follower.intake.enter()
        both.owner.intake.max_requests = 1
        assert both.owner.intake.no_place().status == 503
        both.follower.intake.leave()
        assert both.owner.intake.no_place() is None
        both.follower.intake.hold(both.owner.intake.most_bytes)
        assert both.owner.intake.hold(1).status == 503


async def test_answers_sampled_anywhere_are_replayed_by_the_owner(pair) -> None:
    async with pair() as both:
        both.owner.sampler = Sampler(1.0, both.owner.control, None)
        one = Answer((1, 2), (3,), RequestLevel(40))
        both.follower.following.keep(one)
        while not both.owner.sampler.held:
            await asyncio.sleep(0)
        assert both.owner.sampler.held[0] == one


async def test_a_scrape_has_the_owner_read_the_workers(pair) -> None:
    async with pair() as both:
        both.owner.poller._pulse.beat()
        await both.follower.refresh_metrics()
        assert both.owner.metrics.read_at == both.follower.metrics.read_at is not None
