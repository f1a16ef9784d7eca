"""The console in a real browser on a real engine: answers, levels, pictures, both widths."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.integration.live_server import ADMIN_KEY, LiveServer
from tests.page_tools import chromium

WIDTHS = {"phone": (360, 740), "desktop": (1440, 900)}
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(exact_server: LiveServer, browser: Browser) -> Iterator[Page]:
    context, said = browser.new_context(), []
    tab = context.new_page()
    # A refused request is in the browser's own log.
    tab.on("console", lambda one: None if "status of 4" in one.text else said.append(one.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    # Without a key, a server that wants none from users keeps its audit trail to itself: 401.
    tab.goto(f"{exact_server.url}/console")
    yield tab
    context.close()
    assert said == []


def give_admin_key(page: Page) -> None:
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Use them").click()
    expect(page.locator("#trail tbody tr").first).to_be_visible()


def ask(page: Page, text: str, kind: str, tokens: str = "24", level: str = "1") -> None:
    page.locator("#prompt").fill(text)
    page.locator("#ask-kind").select_option(kind)
    page.locator("#ask-level").fill(level)
    page.locator("#ask-tokens").fill(tokens)
    # A refusal may be told before anybody sees that it was asked.
    page.evaluate("document.getElementById('ask-live').textContent = ''")
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator("#ask-live")).to_contain_text("answers", timeout=60_000)


def sides(page: Page) -> list[str]:
    return [
        page.locator(f"#{side}-talk .answer").last.text_content() for side in ("exact", "skipping")
    ]


def test_two_answers_stand_side_by_side_each_at_its_level(page, exact_server):
    expect(page.locator("#state")).to_have_text("ready")
    ask(page, "What is the capital of France?", "chat")
    exact, skipping = page.locator("#exact-figures"), page.locator("#skipping-figures")
    expect(exact).to_contain_text("level 0 · first token")
    expect(exact).to_contain_text("tokens/s")
    expect(skipping).to_contain_text("level 1 · first token")
    expect(skipping).to_contain_text(re.compile(r"(49|50)\.\d\s% skipped"))
    first = exact_server.client().chat.completions.create(
        model=exact_server.model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
    )
    answers = sides(page)
    assert answers[0] == first.choices[0].message.content and answers[0] != answers[1]
    expect(page.locator("#ask-said")).to_contain_text("answers")
    assert page.locator(".talk mark").count() == 2
    # A second turn takes the first along.
    ask(page, "And its river?", "chat")
    assert page.locator("#exact-talk .asked").count() == 2
    page.get_by_role("button", name="New").click()
    expect(page.locator("#exact-talk")).to_be_empty()


def test_what_comes_back_is_text_and_never_markup(page):
    page.get_by_label("one after the other").uncheck()
    ask(page, EVIL, "text")
    assert page.locator("#exact-talk .asked").text_content() == EVIL
    assert page.locator(".talk img, .talk script").count() == 0
    assert "owned" not in page.title()


def test_a_refused_question_is_answered_in_words(page):
    ask(page, "x", "text", tokens="3000")
    for side in ("exact", "skipping"):
        expect(page.locator(f"#{side}-talk .failed")).to_contain_text("max_model_len=1024")
    expect(page.locator("#ask-said")).to_have_text("Not both answers came whole.")


def test_the_pictures_follow_the_counters_and_the_level(page, exact_server):
    give_admin_key(page)
    exact_server.put_level({"level": 1, "reason": "to be seen"})
    exact_server.answer()
    exact_server.get("/metrics")  # has the counters read
    expect(page.locator("#tile-level")).to_have_text("1", timeout=15_000)
    expect(page.locator("#tile-skipped")).to_contain_text("%", timeout=15_000)
    label = page.locator("#curve svg").get_attribute("aria-label")
    assert "3 measured levels" in label and "at most 0.4 nats a token" in label
    expect(page.locator("#speed svg polyline")).to_have_count(2, timeout=15_000)
    expect(page.locator("#trail tbody tr").first).to_contain_text("to be seen")
    page.get_by_text("As a table").click()
    rows = page.locator("#layers tbody tr")
    assert rows.count() == 4 and "compact" in rows.first.text_content()
    assert painted(page) > 0
    page.get_by_label("experts read").check()
    assert painted(page) > 0


def painted(page: Page) -> int:
    """Pixels of the heat map that hold something."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#heat canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.filter((value, place) => place % 4 === 3 && value > 0).length;
        }"""
    )


def test_it_works_by_keyboard_alone(page):
    expect(page.locator("#state")).to_have_text("ready")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the numbers"
    page.locator("#prompt").focus()
    page.keyboard.type("the people")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("8")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-live")).to_contain_text("answers", timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_a_screen_reader_s_rules_hold(exact_server, browser, width, scheme):
    across, down = WIDTHS[width]
    context = browser.new_context(
        viewport={"width": across, "height": down}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.goto(f"{exact_server.url}/console")
    expect(page.locator("#speed svg")).to_be_visible(timeout=15_000)
    give_admin_key(page)
    page.get_by_role("button", name="Keys").click()
    page.get_by_text("As a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") == across
    found = Axe().run(page).response["violations"]
    context.close()
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
