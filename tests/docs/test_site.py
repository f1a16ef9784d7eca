"""The site builds without a warning, and a reader's browser asks nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT, prose

# What a browser fetches by itself; links to papers are followed by people.
FETCHED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found += [value or "" for name, value in attributes if (tag, name) in FETCHED]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_it_builds_without_a_warning_and_has_every_page(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.glob("*.html"):
        fetches = Fetches()
        fetches.feed(page.read_text(encoding="utf-8"))
        assert fetches.found
        elsewhere = [url for url in fetches.found if urlsplit(url).scheme or url.startswith("//")]
        assert not elsewhere, f"{page.name} fetches {elsewhere}"


def test_styles_and_drawings_fetch_nothing(site):
    for file in (*site.rglob("*.css"), *site.rglob("*.svg")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?:@import|url\(|href=)[\s\"'(]*(?:https?:)?//", text), file


def test_no_page_asks_the_scripts_for_a_library_of_the_net(site):
    """The theme would fetch Mermaid for a diagram that is written as text."""
    for page in site.glob("*.html"):
        assert 'class="mermaid"' not in page.read_text(encoding="utf-8"), page.name


def test_formulas_are_markup_that_browsers_draw(site):
    concepts = (site / "concepts.html").read_text(encoding="utf-8")
    assert concepts.count("<math") > 5
    for page in site.glob("*.html"):
        assert 'class="arithmatex"' not in page.read_text(encoding="utf-8"), page.name


def test_tools_are_no_part_of_the_site(site):
    assert not (site / "tools").exists()


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links_at_the_front_door_lead_somewhere(page, site):
    for url in _LINK.findall(prose(page)):
        parts = urlsplit(url)
        if parts.scheme:
            continue
        target = page if not parts.path else (ROOT / unquote(parts.path))
        assert target.exists(), f"{page.name}: {url}"
        if parts.fragment and target.parent == ROOT / "docs":
            built = (site / f"{target.stem}.html").read_text(encoding="utf-8")
            assert f'id="{parts.fragment}"' in built, f"{page.name}: {url}"
