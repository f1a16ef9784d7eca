"""The report: one file that loads nothing, and that a browser opens without a complaint."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from leanmoe_loadtest.reading.compare import compare
from leanmoe_loadtest.reading.page import comparison_page, run_page, saturation_page
from leanmoe_loadtest.reading.quality import EXACT, Answer, Quality
from leanmoe_loadtest.reading.saturation import Bounds, find_saturation, step_of
from leanmoe_loadtest.reading.slo import parse_slo
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.run import read_run
from tests.page_tools import chromium
from tests.unit.loadtest.runs import SMALL_RUN, drawn_run, record, run_of, swept_run
from tests.unit.loadtest.test_compare import side

_VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags that are closed in order, what the page would load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag not in _VOID:
            self.open.append(tag)
        loads = [named.get(key) for key in ("src", "href", "xlink:href", "action", "data")]
        self.loads += [one for one in loads if one and not one.startswith("#")]
        self.ids += [named["id"]] if "id" in named else []
        assert tag not in ("script", "iframe", "object", "embed", "link")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def quality() -> Quality:
    def answers(name, level, text):
        return [
            Answer(answers=name, level=level, prompt=n, text=text, tokens=list(text))
            for n in range(9)
        ]

    exact = [*answers(EXACT, '"off"', "aaaa"), *answers("exact again", '"off"', "aaaa")]
    return Quality([*exact, *answers("0.5", '{"level": 0.5}', "aabb")])


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    run = read_run(SMALL_RUN)
    slo = parse_slo("ttft<1s,itl_p95<50ms")
    summary = summarise_run(run, slo, quality())

    def measure(rate, number):
        return step_of(
            rate, {**summary, "goodput": {**summary["goodput"], "share": 3 / rate}}, 0.9, 1
        )

    found = find_saturation(measure, Bounds(target=0.9))
    about = {"url": "http://a", "model": "tiny", "slo": slo.text}
    sides = side(drawn_run(1, count=48)), side(drawn_run(2, count=48, scale=1.3))
    html = {
        "run": run_page(summary, run.requests),
        "comparison": comparison_page(compare(*sides, seed=0)),
        "saturation": saturation_page({**found, **about}, summary, run.requests),
        "sweep": run_page(summarise_run(swept := swept_run()), swept.requests),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in html.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in html}


# Each is there twice: wide, and narrow for a phone.
FIGURES = {"run": 3, "comparison": 1, "saturation": 4, "sweep": 3}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "is_mobile": True}


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_is_whole_and_loads_nothing(pages, name):
    html = pages[name].read_text()
    page = Page(html)
    assert page.loads == []
    assert "@import" not in html and "url(http" not in html
    assert html.count("<svg") == 2 * FIGURES[name]
    assert len(page.ids) == len(set(page.ids))


def test_the_page_of_a_run_says_what_was_measured(pages):
    words = Page(pages["run"].read_text()).words
    for text in ("Load test of tiny", "1500.0", "2 of 5", "40.0%", "0.5", "off", "poisson:1"):
        assert any(text in word for word in words), text
    for title in ("Latencies", "On the time axis", "By level", "Quality", "The server", "Errors"):
        assert title in words
    assert "expert calls skipped, and the server's level" in words


def test_the_same_run_gives_the_same_bytes(pages):
    run = read_run(SMALL_RUN)
    summary = summarise_run(run, parse_slo("ttft<1s,itl_p95<50ms"), quality())
    assert run_page(summary, run.requests) == pages["run"].read_text()


def test_what_a_server_sends_cannot_become_markup():
    evil = "<script>alert(1)</script>"
    run = run_of([record(), record(1.0, error=evil)], model=evil)
    html = run_page(summarise_run(run), run.requests)
    assert evil not in html and "&lt;script&gt;" in html
    Page(html)


@pytest.mark.parametrize("scheme", ["no requests but one", "one window", "no levels"])
def test_small_runs_have_a_page_too(scheme):
    requests = [record(gaps=())] if scheme == "no requests but one" else [record(), record(0.01)]
    run = run_of(requests)
    Page(run_page(summarise_run(run), run.requests))


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.parametrize("name", FIGURES)
def test_a_browser_draws_the_page(pages, name, browser):
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto(pages[name].as_uri())
    assert page.locator("figure svg:visible").count() == FIGURES[name]
    boxes = [figure.bounding_box() for figure in page.locator("figure svg:visible").all()]
    assert all(box["height"] > 50 for box in boxes)
    assert said == []
    page.close()


# How large words are drawn, in pixels of the page.
_SMALLEST = """() => Math.min(...[...document.querySelectorAll('figure svg text')]
    .filter(one => one.getBoundingClientRect().width > 0)
    .map(one => parseFloat(getComputedStyle(one).fontSize) * Math.hypot(
        one.getScreenCTM().a, one.getScreenCTM().b)))"""
_OVERFLOWING = """() => [...document.querySelectorAll('main, section, figure, p, h1, h2, li, dd')]
    .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
_SMALL_TEXT = """() => [...document.querySelectorAll('td, th, p, dt, dd, li')]
    .filter(one => parseFloat(getComputedStyle(one).fontSize) < 12).map(one => one.outerHTML)"""


@pytest.mark.parametrize("name", FIGURES)
def test_a_phone_shows_the_page_in_its_width(pages, name, browser):
    """Nothing is wider than the screen but tables within their own frame, and words are legible."""
    context = browser.new_context(**PHONE)
    page = context.new_page()
    page.goto(pages[name].as_uri())
    width = PHONE["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(_OVERFLOWING) == []
    assert page.locator("figure svg:visible").count() == FIGURES[name]
    assert page.evaluate(_SMALLEST) >= 10
    assert page.evaluate(_SMALL_TEXT) == []
    assert all(one.bounding_box()["width"] < width for one in page.locator("table.recipe").all())
    context.close()
