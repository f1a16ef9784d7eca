"""Levels over a fake engine: all workers or unready, one change at a time, cache emptied."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from leanmoe.layout import LayerLayout
from leanmoe.messages import PolicyUpdate
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Target
from leanmoe_server.pulse import Pulse

pytestmark = pytest.mark.anyio
PATH = "/v1/expert_skipping"


async def test_unready_before_the_start_and_ready_after(build_app) -> None:
    app = build_app()
    async with app.client() as client:
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/v1/models")).status_code == 503
        await app.service.control.start()
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_the_first_level_is_in_force_before_ready(build_app) -> None:
    app = build_app(target=Target(level=0.5))
    await app.service.control.start()
    assert app.engine.workers[0].policy.betas == dict.fromkeys(range(4), 0.6)
    assert app.engine.cache_resets == 1


@pytest.mark.parametrize("broken_worker", [0, 1])
async def test_an_unwrapped_layer_on_any_worker_keeps_the_server_unready(
    build_app, broken_worker: int
) -> None:
    engine = FakeEngine(workers=2)
    engine.workers[broken_worker].unwrapped = frozenset({2})
    app = build_app(engine)
    await app.service.control.start()
    async with app.client() as client:
        ready = await client.get("/ready")
        assert ready.status_code == 503
        [reason] = ready.json()["reasons"]
        assert f"worker rank{broken_worker}: layer 2" in reason and "wrapped" in reason
        refused = await client.get("/v1/models")
        assert refused.status_code == 503 and reason in refused.json()["error"]["message"]
        change = await client.put(PATH, json={"level": 0})
        assert change.status_code == 503
        assert (await client.get("/ready")).status_code == 503


async def test_a_layer_that_never_ran_keeps_the_server_unready(build_app) -> None:
    engine = FakeEngine()
    engine.workers[0].bypassed = frozenset({3})
    app = build_app(engine)
    await app.service.control.start()
    [reason] = app.service.readiness.reasons
    assert "layer 3" in reason and "never ran" in reason


async def test_two_layers_of_one_number_keep_the_server_unready(build_app) -> None:
    app = build_app(FakeEngine(layers=[0, 1, 2, 3, 3]))
    await app.service.control.start()
    [reason] = app.service.readiness.reasons
    assert "one number" in reason


async def test_a_model_loaded_with_other_experts_keeps_the_server_unready(
    build_app, skip_model
) -> None:
    said = dict.fromkeys(range(4), LayerLayout(n_experts=6, top_k=2))
    app = build_app(model=replace(skip_model, layers=said, renormalize=True))
    await app.service.control.start()
    assert len(app.service.readiness.reasons) == 4
    assert "experts 8, the model's config 6" in app.service.readiness.reasons[0]


async def test_a_dead_engine_is_not_ready(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    app.engine.died = True
    async with app.client() as client:
        ready = await client.get("/ready")
        assert ready.status_code == 503 and "dead" in ready.json()["reasons"][0]
        assert (await client.get("/v1/models")).status_code == 503


async def test_a_missing_layer_or_no_worker_keeps_the_server_unready(build_app) -> None:
    for engine in (FakeEngine(layers=[0, 1, 3]), FakeEngine(workers=0)):
        app = build_app(engine)
        await app.service.control.start()
        assert not app.service.readiness.ready


async def test_a_deaf_worker_makes_the_server_unready_until_it_listens(build_app) -> None:
    engine = FakeEngine(workers=2)
    app = build_app(engine)
    await app.service.control.start()
    engine.workers[1].deaf = True
    async with app.client() as client:
        answer = await client.put(PATH, json={"level": 1})
        assert answer.status_code == 503 and "rank1" in answer.json()["error"]["message"]
        assert (await client.get("/v1/models")).status_code == 503
        engine.workers[1].deaf = False
        assert (await client.put(PATH, json={"level": 1})).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_cache_that_cannot_be_emptied_makes_the_server_unready(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    app.engine.cache_reset_works = False
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 1})).status_code == 503
        assert (await client.get("/ready")).status_code == 503


async def test_concurrent_changes_end_with_one_policy_everywhere(build_app) -> None:
    app = build_app(FakeEngine(workers=3))
    await app.service.control.start()
    async with app.client() as client:
        puts = [client.put(PATH, json={"level": (i + 1) % 2}) for i in range(20)]
        answers = await asyncio.gather(*puts)
    assert [a.status_code for a in answers] == [200] * 20
    assert sorted(a.json()["version"] for a in answers) == list(range(2, 22))
    policies = {json.dumps(w.policy.model_dump(mode="json")) for w in app.engine.workers}
    assert len(policies) == 1
    assert app.engine.cache_resets == 21


async def test_a_change_of_nothing_empties_no_cache_and_takes_no_version(build_app) -> None:
    app = build_app(target=Target(level=0.5))
    await app.service.control.start()
    async with app.client() as client:
        for body in ({"level": 0.5}, {"phases": "all"}, {"level": 0.5, "union_budget": None}):
            same = (await client.put(PATH, json=body)).json()
            assert (same["version"], same["level"]) == (1, 0.5)
        assert app.engine.cache_resets == 1
        # Asked in another way, the same level is named by its promise from now on.
        by_promise = (await client.put(PATH, json={"max_kld": 0.1})).json()
        assert (by_promise["level"], by_promise["max_kld"]) == (0.5, 0.1)
        assert (by_promise["version"], app.engine.cache_resets) == (1, 1)
        other = (await client.put(PATH, json={"level": 1})).json()
    assert (other["version"], app.engine.cache_resets) == (2, 2)


@pytest.mark.parametrize(
    "behind_the_back",
    [
        {"level": 1.0, "version": 1},
        {"level": 0.0, "version": 9},
        {"level": 0.0, "version": 1, "union": {"experts": 2}},
    ],
)
async def test_another_policy_than_the_servers_makes_it_unready_until_a_level_is_set(
    build_app, behind_the_back
) -> None:
    app = build_app(FakeEngine(workers=2))
    await app.service.control.start()
    await app.service.poller.refresh()
    betas = dict.fromkeys(range(4), 1.0)
    stray = PolicyUpdate.model_validate({"betas": betas, **behind_the_back})
    app.engine.workers[1].policy = stray
    async with app.client() as client:
        assert (await client.get("/ready")).status_code == 200
        await app.service.poller.refresh()
        [reason] = (await client.get("/ready")).json()["reasons"]
        assert "worker rank1 has version" in reason and "set a level again" in reason
        assert (await client.post("/v1/completions", json={})).status_code == 503
        # The same level as before: the workers do not apply it.
        assert (await client.put(PATH, json={"level": 0})).json()["version"] == 2
        await app.service.poller.refresh()
        assert (await client.get("/ready")).status_code == 200


async def test_counters_read_during_a_change_are_not_held_against_it(
    build_app, monkeypatch
) -> None:
    app = build_app()
    await app.service.control.start()
    reading, go_on = asyncio.Event(), asyncio.Event()
    before = await app.engine.snapshot()

    async def slow_snapshot():
        reading.set()
        await go_on.wait()
        return before

    monkeypatch.setattr(app.engine, "snapshot", slow_snapshot)
    polled = asyncio.create_task(app.service.control.snapshot())
    await reading.wait()
    monkeypatch.undo()
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 1})).status_code == 200
        go_on.set()
        await polled
        assert (await client.get("/ready")).status_code == 200


async def test_silent_workers_make_it_unready_and_a_change_does_not_wait_for_them(
    build_app, monkeypatch
) -> None:
    app = build_app()
    await app.service.control.start()
    silent = "the workers have not answered for 9 s"

    async def never(update):
        monkeypatch.setattr(Pulse, "problem", silent)
        await asyncio.Event().wait()

    monkeypatch.setattr(app.engine, "set_policy", never)
    async with app.client() as client:
        for _ in range(2):  # silent while it changes, then before
            refused = await asyncio.wait_for(client.put(PATH, json={"level": 1}), 60)
            assert refused.status_code == 503 and silent in refused.text
        assert (await client.get("/ready")).status_code == 503
        monkeypatch.undo()
        # Nobody knows what became of the change that was under way.
        assert "set a level again" in (await client.get("/ready")).text
        assert (await client.put(PATH, json={"level": 1})).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_silence_alone_ends_by_itself(build_app, monkeypatch) -> None:
    app = build_app()
    await app.service.control.start()
    async with app.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(Pulse, "problem", "silent")
            assert (await client.get("/ready")).json()["reasons"] == ["silent"]
            assert (await client.put(PATH, json={"level": 1})).status_code == 503
            assert (await client.get(PATH)).json()["ready"] is False
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get(PATH)).json()["level"] == 0


@pytest.mark.parametrize("target", [{"level": 0.5}, {"max_kld": 0.1}])
async def test_without_a_curve_only_0_and_1_are_levels(build_app, target: dict[str, float]) -> None:
    app = build_app(model=SkipModel((0, 1, 2, 3), None))
    await app.service.control.start()
    async with app.client() as client:
        answer = await client.put(PATH, json=target)
        assert answer.status_code == 400
        assert "leanmoe curve" in answer.json()["error"]["message"]
        shown = (await client.get(PATH)).json()
        assert (shown["has_curve"], shown["curve"], shown["level"]) == (False, None, 0.0)
        assert (await client.put(PATH, json={"level": 1})).status_code == 200


async def test_an_endless_body_is_cut_off(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1024
            yield b" " * 1024

    async with app.client() as client:
        answer = await client.put(PATH, content=endless())
    assert answer.status_code == 413
    assert sent < 64 * 1024


async def test_draining_refuses_what_comes_and_waits_for_what_runs(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    closed = asyncio.Event()
    drain = app.service.drain
    drain.enter()
    drain.begin(closed.set)
    async with app.client() as client:
        assert (await client.get("/v1/models")).status_code == 503
        assert (await client.get("/ready")).json()["reasons"] == ["the server is stopping"]
        assert not closed.is_set()
    drain.leave()
    await asyncio.wait_for(closed.wait(), 5)
    assert app.engine.aborts == 0


async def test_a_second_signal_ends_what_runs(build_app) -> None:
    app = build_app()
    drain = app.service.drain
    closed = asyncio.Event()
    drain.enter()
    drain.begin(closed.set)
    await asyncio.sleep(0)
    drain.begin(closed.set)

    async def until_aborted() -> None:
        while not app.engine.aborts:
            await asyncio.sleep(0)

    await asyncio.wait_for(until_aborted(), 5)
    drain.leave()
    await asyncio.wait_for(closed.wait(), 5)


async def test_a_table_that_did_not_arrive_is_sent_again_before_anything_is_served(
    build_app, monkeypatch
) -> None:
    app = build_app()
    works = app.engine.set_levels

    async def fails(table):
        raise TimeoutError

    monkeypatch.setattr(app.engine, "set_levels", fails)
    await app.service.control.start()
    assert "table of levels" in app.service.readiness.reasons[0]
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 0.5})).status_code == 503
        assert (await client.get("/v1/models")).status_code == 503
        monkeypatch.setattr(app.engine, "set_levels", works)
        assert (await client.put(PATH, json={"level": 0.5})).status_code == 200
    assert app.engine.levels is not None
