"""The console in a real browser, over the real app around a fake engine: what an operator is told.

Answers, levels and speeds of a real engine: tests/integration/server/test_console.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from leanmoe.process.ports import free_port
from leanmoe_server.console.recorder import Recorder
from leanmoe_server.console.status import record_readings
from leanmoe_server.fake_engine import FakeEngine
from tests.page_tools import chromium

ADMIN, USER = "key-of-the-administrator", "key-of-a-user"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@contextmanager
def served(app, port: int | None = None) -> Iterator[str]:
    """The app behind a real socket, started as its policy is in force; its address."""
    port = port or free_port()
    ticks = count()
    recorder = Recorder(app.registry, clock=lambda: float(next(ticks)))
    record_readings(app.asgi.state, app.service, recorder)
    config = uvicorn.Config(app.asgi, "127.0.0.1", port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    up = threading.Event()

    async def run() -> None:
        await app.service.control.start()
        await app.service.poller.refresh()
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        up.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert up.wait(30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)


@contextmanager
def opened(browser: Browser, url: str, **options) -> Iterator[Page]:
    """The console in a tab of its own; nothing may be thrown there."""
    context, thrown = browser.new_context(**options), []
    page = context.new_page()
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.on("console", lambda said: thrown.append(said.text) if "Policy" in said.text else None)
    page.goto(f"{url}/console")
    try:
        yield page
    finally:
        context.close()
    assert thrown == []


def test_it_asks_for_a_key_keeps_it_in_the_tab_and_sends_it(build_app, browser):
    app = build_app(user_key=USER)
    with served(app) as url, opened(browser, url) as page:
        expect(page.locator("#notices")).to_have_text(
            "This server asks for a key: give yours under Keys."
        )
        page.get_by_label("Your key").fill("wrong")
        page.get_by_role("button", name="Use them").click()
        expect(page.locator("#notices")).to_contain_text("The server refuses this key")
        page.get_by_label("Your key").fill(USER)
        with page.expect_request("**/status?*") as asked:
            page.get_by_role("button", name="Use them").click()
        assert asked.value.headers["authorization"] == f"Bearer {USER}"
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#keys")).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [
            0,
            "",
            f"{url}/console",
        ]
        page.reload()
        expect(page.locator("#state")).to_have_text("ready")
        page.get_by_role("button", name="Keys").click()
        page.get_by_role("button", name="Forget both").click()
        expect(page.locator("#state")).to_have_text("key needed")
        assert page.evaluate("sessionStorage.length") == 0


def test_an_admin_key_alone_shows_the_server_and_asks_no_questions(build_app, browser):
    app = build_app(user_key=USER, admin_key=ADMIN)
    with served(app) as url, opened(browser, url) as page:
        page.get_by_label("Admin key").fill(ADMIN)
        page.get_by_role("button", name="Use them").click()
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#trail tbody tr")).to_have_count(1)
        expect(page.locator("#ask-said")).to_have_text(
            "Questions need a user's key: give one under Keys."
        )


def test_an_administrator_changes_the_level_with_a_reason_and_undoes_it(build_app, browser):
    app = build_app(user_key=USER, admin_key=ADMIN)
    with served(app) as url, opened(browser, url) as page:
        page.get_by_label("Your key").fill(USER)
        page.get_by_role("button", name="Use them").click()
        expect(page.locator("#trail-said")).to_contain_text("The audit trail is for administrators")
        page.locator("#target-value").fill("1")
        page.locator("#reason").fill("as a user")
        page.get_by_role("button", name="Put in force").click()
        expect(page.locator("#level-said")).to_contain_text("Not changed: ")
        page.get_by_role("button", name="Keys").click()
        page.get_by_label("Admin key").fill(ADMIN)
        page.get_by_role("button", name="Use them").click()
        expect(page.locator("#trail tbody tr")).to_have_count(1)
        page.locator("#reason").fill("<b>a long queue</b>")
        page.locator("#target-value").fill("0.5")
        expect(page.locator("#target-said")).to_contain_text(
            "up to 25.0\u00a0% skipped, KLD at most 0.04"
        )
        page.keyboard.press("Enter")
        expect(page.locator("#level-said")).to_have_text("Level 0.5 is in force on every worker.")
        expect(page.locator("#tile-level")).to_have_text("0.5")
        row = page.locator("#trail tbody tr").first
        expect(row).to_contain_text("0 → 0.5")
        expect(row).to_contain_text("<b>a long queue</b>")
        assert app.engine.workers[0].policy.level == 0.5
        page.get_by_role("button", name="Undo the last change").click()
        expect(page.locator("#level-said")).to_have_text("Undone: level 0 is in force again.")
        expect(page.locator("#trail tbody tr")).to_have_count(3)
        page.get_by_label("a highest KLD").check()
        page.locator("#target-value").fill("0.1")
        expect(page.locator("#target-said")).to_contain_text("That is level 0.5: up to 25.0")


def test_what_is_missing_is_said_in_a_sentence(build_app, browser, skip_model):
    app = build_app(model=replace(skip_model, curve=None), admin_key=None)
    with served(app) as url, opened(browser, url) as page:
        expect(page.locator("#curve-said")).to_contain_text("This model has no quality curve")
        expect(page.locator("#target-said")).to_contain_text("No curve: level 0 (exact) or 1")
        expect(page.locator("#memory-said")).to_contain_text("There is no device memory to report.")
        page.locator("#target-value").fill("1")
        page.locator("#reason").fill("try")
        page.get_by_role("button", name="Put in force").click()
        expect(page.locator("#level-said")).to_contain_text("needs an admin key and none is set")
        expect(page.locator("#tile-level")).to_have_text("0")


def test_an_unready_a_stopping_and_an_absent_server_are_said_and_come_back(build_app, browser):
    engine = FakeEngine()
    engine.workers[0].unwrapped = frozenset({2})
    port = free_port()
    with opened_later(browser) as page:
        with served(build_app(engine), port) as url:
            page.goto(f"{url}/console")
            expect(page.locator("#state")).to_have_text("not ready")
            expect(page.locator("#notices")).to_contain_text("layer 2")
            page.locator("#prompt").fill("anybody?")
            page.get_by_role("button", name="Ask both").click()
            expect(page.locator("#ask-said")).to_contain_text("has not named its model yet")
        expect(page.locator("#state")).to_have_text("no answer")
        expect(page.locator("#notices")).to_contain_text("The server does not answer since")
        app = build_app()
        with served(app, port):
            expect(page.locator("#state")).to_have_text("ready", timeout=30_000)
            expect(page.locator("#notices")).to_be_empty()
            app.service.drain._task = app.service.poller  # as while a drain runs
            expect(page.locator("#state")).to_have_text("stopping")


@contextmanager
def opened_later(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    try:
        yield context.new_page()
    finally:
        context.close()
