"""Bounded bodies and places: refused in time, counted once, given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.intake import Arrival

pytestmark = pytest.mark.anyio
PATH = "/v1/completions"


async def started(build_app, **limits: int):
    app = build_app()
    await app.service.control.start()
    for name, value in limits.items():
        setattr(app.service.intake, name, value)
    return app


def said(answer: httpx.Response) -> str:
    message: str = answer.json()["error"]["message"]
    return message


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize("path", [PATH, "/v1/embeddings"])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_long_body_is_refused_before_it_is_held(build_app, path, announced) -> None:
    app = await started(build_app, max_body_bytes=1000)
    content = b" " * 1001 if announced else chunks(300, 1000)
    async with app.client() as client:
        answer = await client.post(path, content=content)
        assert answer.status_code == 413 and "longer than 1000 bytes" in said(answer)
        assert (await client.post(path, content=chunks(100, 10))).status_code == 200
    assert (app.service.intake.occupancy.held_bytes, app.service.drain.in_flight) == (0, 0)


async def test_bodies_that_hold_too_much_together_are_refused(build_app) -> None:
    app = await started(build_app, most_bytes=1000)
    app.service.intake.hold(990)
    async with app.client() as client:
        answer = await client.post(PATH, content=b" " * 20)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert "too much memory" in said(answer)
        assert (await client.post(PATH, content=b"{}")).status_code == 200
    assert app.service.intake.occupancy.held_bytes == 990


async def test_past_the_last_place_a_request_is_refused_and_reading_is_not(build_app) -> None:
    app = await started(build_app)
    assert app.service.intake.max_requests == FakeEngine().seats() + 1024
    app.service.intake.max_requests = 2
    for _ in range(2):
        app.service.intake.enter()
    async with app.client() as client:
        answer = await client.post(PATH, json={})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert "--max-waiting" in said(answer)
        counted = {"reason": "places"}
        name = "leanmoe_refused_requests_total"
        assert app.registry.get_sample_value(name, counted) == 1
        assert (await client.get("/v1/models")).status_code == 200
        app.service.intake.leave()
        assert (await client.post(PATH, json={})).status_code == 200
    assert app.service.drain.in_flight == 1


async def test_the_last_place_goes_to_who_has_arrived(build_app) -> None:
    app = await started(build_app, max_requests=1)
    rest = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await rest.wait()
        yield b"}"

    async with app.client() as client:
        waits = asyncio.create_task(client.post(PATH, content=slow()))
        while not app.service.intake.occupancy.held_bytes:
            await asyncio.sleep(0)
        assert app.service.drain.in_flight == 0
        assert (await client.post(PATH, json={})).status_code == 200
        app.service.intake.enter()
        rest.set()
        assert (await waits).status_code == 503


async def test_a_half_sent_body_does_not_delay_a_stop(build_app) -> None:
    app = await started(build_app)
    closed = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with app.client() as client:
        waits = asyncio.create_task(client.post(PATH, content=never()))
        while not app.service.intake.occupancy.held_bytes:
            await asyncio.sleep(0)
        app.service.drain.begin(closed.set)
        answer = await asyncio.wait_for(waits, 30)
        assert answer.status_code == 503 and "stopping" in said(answer)
    await asyncio.wait_for(closed.wait(), 30)
    assert (app.engine.aborts, app.service.intake.occupancy.held_bytes) == (0, 0)


async def test_what_was_refused_is_not_answered_twice(build_app) -> None:
    app = await started(build_app, max_body_bytes=10)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b" " * 20, "more_body": True}

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"transfer-encoding", b"chunked")]}
    arrival = Arrival(app.service.intake, scope, receive, send)
    assert (await arrival.receive())["type"] == "http.disconnect"
    await arrival.send({"type": "http.response.start", "status": 200, "headers": []})
    await arrival.finish()
    assert [one.get("status") for one in sent] == [413, None]
