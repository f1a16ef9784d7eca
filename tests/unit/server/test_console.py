"""The console's routes over a fake engine: public files under a strict policy, cheap data."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from leanmoe import metric_names as names
from leanmoe_server.console.pages import ASSETS
from leanmoe_server.console.recorder import KEPT, Recorder
from leanmoe_server.console.status import record_readings
from leanmoe_server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
STATUS = "/v1/expert_skipping/status"


def text(name: str) -> str:
    return ASSETS[name].content.decode()


class Tags(HTMLParser):
    """What the page names: ids, what it loads, and anything that a strict policy would stop."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.inline: list[str] = []
        self.refers: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.loads += [named[key] for key in ("src", "href") if key in named and tag != "a"]
        self.inline += [key for key in named if key == "style" or key.startswith("on")]
        keys = ("for", "aria-labelledby", "aria-controls")
        self.refers += [one for key in keys for one in named.get(key, "").split()]
        self._script = tag in ("script", "style")

    def handle_data(self, data):
        if self._script and data.strip():
            self.inline.append(data)


PAGE = Tags(text("console.html"))


def test_the_page_has_nothing_inline_and_loads_its_own_files_only():
    assert PAGE.inline == []
    assert {one.removeprefix("console/") for one in PAGE.loads} <= set(ASSETS)
    for name in ASSETS:
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`)]*", text(name))
        assert [one for one in found if "www.w3.org" not in one] == [], name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text(name)
        )


def test_scripts_import_shipped_files_and_name_elements_that_exist():
    assert len(PAGE.ids) == len(set(PAGE.ids))
    assert set(PAGE.refers) <= set(PAGE.ids)
    for name in (one for one in ASSETS if one.endswith(".js")):
        source = text(name)
        for target in re.findall(r'from "\./([^"]+)"', source):
            assert target in ASSETS, (name, target)
        used = re.findall(r'(?:\$|say|rows)\("([a-z-]+)"', source)
        assert set(used) <= set(PAGE.ids), (name, set(used) - set(PAGE.ids))


async def test_files_are_public_safe_and_only_those_shipped(build_app):
    app = build_app(user_key="secret")
    async with app.client("203.0.113.5") as client:
        for path in ("/console", *(f"/console/{name}" for name in ASSETS)):
            answer = await client.get(path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and "*" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        again = await client.get("/console", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 200  # another file's tag
        tag = again.headers["etag"]
        assert (await client.get("/console", headers={"If-None-Match": tag})).status_code == 304
        for name in ("pages.py", "..%2Fpages.py", "%2e%2e/pages.py", "console.html%00", "x" * 5000):
            assert (await client.get(f"/console/{name}")).status_code in (401, 404), name
        assert (await client.get("/console/")).headers["location"] == "../console"


def record(app, **options) -> Recorder:
    recorder = Recorder(app.registry, **options)
    record_readings(app.asgi.state, app.service, recorder)
    return recorder


async def test_data_needs_the_user_s_key(build_app):
    app = build_app(user_key="secret")
    record(app)
    async with app.client() as client:
        assert (await client.get(STATUS)).status_code == 401
        answer = await client.get(STATUS, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"


async def test_an_unready_server_says_why_and_asks_no_worker(build_app):
    engine = FakeEngine()
    engine.workers[0].unwrapped = frozenset({2})
    app = build_app(engine)
    record(app)
    await app.service.control.start()
    engine.snapshot = None  # whoever asked the workers would fail
    async with app.client() as client:
        status = (await client.get(STATUS)).json()
    assert not status["ready"] and "layer 2" in status["reasons"][0]
    assert status["points"] == [] and status["policy"]["level"] is None
    assert "betas" not in status["policy"]
    assert status["snapshot_age_seconds"] is None


@pytest.mark.parametrize("after", ["-1", "x", "", "1.5", "9" * 16, "٣"])
async def test_a_wrong_number_of_a_point_is_one_sentence(build_app, after):
    app = build_app()
    record(app)
    async with app.client() as client:
        answer = await client.get(STATUS, params={"after": after})
    assert answer.status_code == 400
    assert "expected the number of a point" in answer.json()["error"]["message"]


async def test_readings_become_points_of_what_passed_between_them(build_app):
    app, clock = build_app(), iter([0.0, 2.0, 2.1, 4.0])
    record(app, clock=lambda: next(clock))
    tokens = Counter("vllm:generation_tokens", "x", ["engine"], registry=app.registry)
    Gauge("vllm:num_requests_running", "x", ["engine"], registry=app.registry).labels("0").set(3)
    await app.service.control.start()
    async with app.client() as client:
        await client.put("/v1/expert_skipping", json={"level": 1})
        app.engine.run_tokens(10)
        tokens.labels("0").inc(10)
        tokens.labels("1").inc(10)
        await app.service.poller.refresh()  # 2.0
        app.engine.run_tokens(5)
        await app.service.poller.refresh()  # 2.1: too young for a point
        app.engine.run_tokens(5)
        await client.put("/v1/expert_skipping", json={"level": 0})
        await app.service.poller.refresh()  # 4.0
        first, second = (await client.get(STATUS)).json()["points"]
        later = (await client.get(STATUS, params={"after": 1})).json()
    assert first["decode_per_second"] == 10 and first["running"] == 3 and first["waiting"] is None
    assert first["level"] == 1 and second["level"] == 0 and second["decode_per_second"] == 0
    # The two tokens of the warm-up came before the level.
    assert (first["routed"], first["skipped"]) == (4 * 24, 4 * 10)
    assert first["layers"][0] == [round(10 / 24, 4), None]
    assert (second["routed"], second["skipped"]) == (4 * 20, 4 * 10)
    assert [point["number"] for point in later["points"]] == [2]
    assert [one["skipped"] for one in later["layers"]] == [20] * 4
    assert [one["layer"] for one in later["loaded"]] == [0, 1, 2, 3]


def test_a_recorder_keeps_the_last_points_and_no_more():
    registry, ticks = CollectorRegistry(), iter(range(1000))
    Gauge(names.SKIP_LEVEL.name, "x", registry=registry)
    recorder = Recorder(registry, clock=lambda: float(next(ticks)))
    for _ in range(KEPT + 5):
        recorder.read()
    points = recorder.describe()["points"]
    assert len(points) == KEPT and points[0]["number"] == 6
