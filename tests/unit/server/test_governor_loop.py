"""The governor of a server: what it changes, who is told, and what an operator says to it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram

from leanmoe.messages import LayerCounts, SkipSnapshot
from leanmoe_server.governor.aims import Aims, GovernorMode
from leanmoe_server.governor.decision import Objectives
from leanmoe_server.governor.observation import Observation
from leanmoe_server.governor.readings import (
    ITL,
    KV_USAGE,
    RUNNING,
    STEP_TOKENS,
    TTFT,
    WAITING,
    Readings,
)
from leanmoe_server.governor.traffic import Traffic
from leanmoe_server.policy import Target
from leanmoe_server.tenants.tenant_generation import for_tenants
from leanmoe_server.tenants.tenants import SESSION

pytestmark = pytest.mark.anyio
PATH, HISTORY = "/v1/expert_skipping", "/v1/expert_skipping/history"
CHAT = {"model": "m", "messages": []}


def aims(mode: GovernorMode = GovernorMode.ACT, **more) -> Aims:
    return Aims(mode, Objectives(None, 0.1, dwell_seconds=4.0), **{"top": 1.0, **more})


@pytest.fixture
def governed(build_app, monkeypatch):
    """An app whose governor sees what a test tells it."""

    async def build(mode: GovernorMode = GovernorMode.ACT, least_budget=None, **more):
        app = build_app(governor=aims(mode, least_budget=least_budget), **more)
        monkeypatch.setattr(app.service.governor._readings, "problem", None)
        await app.service.control.start()
        return app

    return build


def busy(skipped: float, itl: float = 0.2, step: float = 0.1, **more) -> Observation:
    counts = {"steps": int(1.0 / step), "tokens": int(16.0 / step), "skipped_share": skipped}
    return Observation(1.0, 8, 0, itl_seconds=itl, **counts, **more)


async def press(app, seconds: int, skipped: float = 0.0, **more) -> None:
    for _ in range(seconds):
        await app.service.governor.look(busy(skipped, **more))


async def level_of_a_request(app, **body) -> str:
    """The level that an answer states."""
    async with app.client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, **body})
        return answer.headers["x-leanmoe-skip-level"]


async def test_it_raises_the_level_of_requests_that_name_none(governed) -> None:
    app = await governed()
    version = app.service.control.version
    await press(app, 12)
    assert await level_of_a_request(app) == "0.5"
    assert await level_of_a_request(app, expert_skipping=None) == "0.5"
    assert await level_of_a_request(app, expert_skipping="off") == "0"
    assert await level_of_a_request(app, expert_skipping={"level": 0.2}) == "0.2"
    # No worker was told: running answers go on as they began, and no cache was emptied.
    assert (app.service.control.version, app.engine.cache_resets) == (version, 1)
    async with app.client() as client:
        shown = (await client.get(PATH)).json()
        assert shown["level"] == 0.0 and shown["governor"]["level"] == 0.5
        [move, _] = (await client.get(HISTORY)).json()["changes"]
    assert (move["cause"], move["who"], move["to"]["level"]) == ("governor", "governor", 0.5)
    assert "% of the objectives" in move["reason"]
    assert app.registry.get_sample_value("leanmoe_governor_level") == 0.5
    assert app.registry.get_sample_value("leanmoe_governor_moves_total", {"direction": "up"}) == 1


async def test_vllm_is_told_the_level_and_keeps_its_prompts_apart(governed) -> None:
    app = await governed()
    control = app.service.control
    told = []

    async def generate(prompt, params, request_id):
        told.append((prompt.get("cache_salt"), (params.extra_args or {}).get(control.request_key)))
        yield SimpleNamespace(finished=True, outputs=[])

    async def ask() -> None:
        params = SimpleNamespace(extra_args=None, output_kind=SimpleNamespace(name="DELTA"))
        token = SESSION.set(app.service.tenants.session(None))
        async for _ in for_tenants(generate, control)({"prompt_token_ids": [1]}, params, "id"):
            pass
        SESSION.reset(token)

    await ask()
    await press(app, 12)
    await ask()
    (salt, level), (other, raised) = told
    assert (salt, level) == (None, None)
    assert other is not None and raised == 50


async def test_where_steps_do_not_get_shorter_it_goes_back_and_says_so(governed) -> None:
    app = await governed()
    await press(app, 12)
    await press(app, 30, skipped=0.3)
    shown = app.service.governor.describe()
    assert (shown["level"], shown["rung"]) == (None, 0) and "shorter" in shown["disarmed"]
    assert app.registry.get_sample_value("leanmoe_governor_armed") == 0
    assert await level_of_a_request(app) == "0"
    async with app.client() as client:
        assert (await client.put(PATH, json={"governor": "act"})).status_code == 200
    await press(app, 12)
    assert app.service.governor.describe()["level"] == 0.5
    assert app.registry.get_sample_value("leanmoe_governor_armed") == 1


async def test_it_climbs_while_steps_get_shorter_and_never_past_the_floor(governed) -> None:
    app = await governed()
    await press(app, 4)
    await press(app, 10, skipped=0.25, step=0.05)
    assert app.service.governor.describe()["level"] == 1.0
    await press(app, 60, skipped=0.5, step=0.02)
    assert app.service.governor.describe()["level"] == 1.0
    for _ in range(4):
        await app.service.governor.look(Observation(1.0, 0, 0))
    assert app.service.governor.describe()["level"] is None


async def test_observing_changes_nothing_and_says_what_it_would_do(governed, caplog) -> None:
    app = await governed(GovernorMode.OBSERVE)
    with caplog.at_level("INFO", logger="leanmoe_server"):
        await press(app, 40)
    assert await level_of_a_request(app) == "0"
    assert "would go from rung 0 to 1" in app.service.governor.describe()["advice"]
    assert "would go from rung 0 to 1" in caplog.text
    assert app.service.control.trail.recorded == 1


async def test_an_operator_s_change_is_the_new_base(governed) -> None:
    app = await governed()
    await press(app, 12)
    async with app.client() as client:
        shown = (await client.put(PATH, json={"level": 0.5})).json()
        assert (shown["level"], shown["governor"]["level"]) == (0.5, None)
        await press(app, 3)
        assert app.service.governor.describe()["levels"] == [1.0]
        # Never below what the operator set, however idle.
        for _ in range(10):
            await app.service.governor.look(Observation(1.0, 0, 0))
        assert await level_of_a_request(app) == "0.5"
        changes = (await client.get(HISTORY)).json()["changes"]
        [change] = [one for one in changes if one["cause"] == "admin"]
        # Before it, requests got the level that the governor had raised.
        assert (change["from"]["level"], change["to"]["level"]) == (0.5, 0.5)


async def test_a_rollback_undoes_the_operator_and_not_the_governor(governed) -> None:
    app = await governed()
    async with app.client() as client:
        await client.put(PATH, json={"level": 0.2})
        await press(app, 12)
        assert app.service.control.governed == 0.5
        assert (await client.post(f"{PATH}/rollback")).json()["level"] == 0.0
    assert app.service.control.governed is None


async def test_hold_goes_back_to_the_base_at_once_until_told_to_act(governed) -> None:
    app = await governed()
    await press(app, 12)
    async with app.client() as client:
        held = (await client.put(PATH, json={"governor": "hold", "reason": "quiet"})).json()
        assert (held["governor"]["mode"], held["governor"]["level"]) == ("hold", None)
        await press(app, 40)
        assert app.service.control.governed is None
        [hold, *_] = (await client.get(HISTORY)).json()["changes"]
        assert (hold["to"]["governor"], hold["reason"]) == ("hold", "quiet")
        assert (await client.put(PATH, json={"governor": "off"})).status_code == 400


async def test_a_server_without_a_governor_says_so(build_app) -> None:
    app = build_app()
    await app.service.control.start()
    async with app.client() as client:
        refused = await client.put(PATH, json={"governor": "act"})
        assert refused.status_code == 400 and "--governor" in refused.text
        assert (await client.get(PATH)).json()["governor"] is None


async def test_where_requests_can_have_no_level_it_disarms_itself(governed) -> None:
    app = await governed(request_levels_unavailable="with X tokens lie in another order")
    await press(app, 12)
    assert "another order" in app.service.governor.describe()["disarmed"]


async def test_a_budget_is_set_on_the_engine_and_taken_back(governed, skip_model) -> None:
    app = await governed(least_budget=2, model=replace(skip_model, n_experts=8, top_k=2))
    memory = {"distinct_experts": 8.0, "bandwidth_share": 0.9}
    await press(app, 12, **memory)
    shown = app.service.governor.describe()
    assert (shown["lever"], shown["union_budget"], shown["level"]) == ("budget", 6, None)
    assert app.engine.workers[0].policy.union.experts == 6
    assert app.service.describe()["union_budget"] == 6
    assert app.service.describe()["promise"] is None
    for _ in range(4):
        await app.service.governor.look(Observation(1.0, 0, 0))
    assert app.engine.workers[0].policy.union is None
    assert app.service.governor.describe()["union_budget"] is None


async def test_a_change_that_fails_disarms_it_and_the_server_is_unready(
    governed, skip_model
) -> None:
    app = await governed(least_budget=2, model=replace(skip_model, n_experts=8, top_k=2))
    app.engine.workers[0].deaf = True
    await press(app, 12, distinct_experts=8.0, bandwidth_share=0.9)
    assert "failed" in app.service.governor.describe()["disarmed"]
    assert not app.service.readiness.ready
    app.engine.workers[0].deaf = False
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 0})).status_code == 200
    assert app.service.readiness.ready


async def test_the_base_may_be_a_promise(governed) -> None:
    app = await governed(target=Target(max_kld=0.05))
    await press(app, 2)
    assert app.service.governor.describe()["levels"] == [1.0]


def snapshots(tokens: int, steps: int, distinct: int, skipped: int) -> list[SkipSnapshot]:
    layer = LayerCounts(
        layer=0, tokens=tokens, routed=2 * tokens, skipped=skipped, steps=steps,
        distinct_experts=distinct,
    )  # fmt: skip
    return [
        SkipSnapshot(
            worker="rank0", pid=1, policy_version=1, level=0.0, layers=[layer], resident_bytes=1
        )
    ]


def test_observations_are_differences_of_vllm_s_own_series() -> None:
    registry = CollectorRegistry()
    gauges = {name: Gauge(name, "", ["engine"], registry=registry) for name in
              (RUNNING, WAITING, KV_USAGE)}  # fmt: skip
    histograms = {name: Histogram(name, "", ["engine"], registry=registry) for name in
                  (TTFT, ITL, STEP_TOKENS)}  # fmt: skip
    traffic = Traffic(weight_bytes=1000, expert_share=0.8, n_experts=8, bandwidth=10_000.0)
    readings = Readings(lambda: traffic, registry)
    for engine, (running, waiting, kv) in enumerate([(3, 1, 0.2), (4, 0, 0.7)]):
        gauges[RUNNING].labels(engine).set(running)
        gauges[WAITING].labels(engine).set(waiting)
        gauges[KV_USAGE].labels(engine).set(kv)
    histograms[TTFT].labels(0).observe(9.0)
    readings.observe(1.0, snapshots(10, 5, 20, 0))
    for value in (1.0, 2.0):
        histograms[TTFT].labels(1).observe(value)
    histograms[ITL].labels(0).observe(0.25)
    for _ in range(4):
        histograms[STEP_TOKENS].labels(0).observe(16)
    seen = readings.observe(2.0, snapshots(74, 9, 36, 32))
    assert (seen.running, seen.waiting, seen.kv_usage) == (7, 1, 0.7)
    assert (seen.first_tokens, seen.ttft_seconds, seen.itl_seconds) == (2, 1.5, 0.25)
    assert (seen.steps, seen.tokens, seen.distinct_experts) == (4, 64, 4.0)
    assert seen.skipped_share == pytest.approx(32 / 128)
    # Half of the experts and all the rest in half a second a step.
    assert seen.bandwidth_share == pytest.approx((1000 * (0.4 + 0.2)) / 0.5 / 10_000)
    nothing = readings.observe(1.0, snapshots(0, 0, 0, 0))
    assert nothing.ttft_seconds is None and nothing.skipped_share is None  # counters began anew


def test_a_server_without_metrics_is_a_problem() -> None:
    readings = Readings(registry=CollectorRegistry())
    readings.observe(1.0, [])
    assert "no metrics" in (readings.problem or "")
