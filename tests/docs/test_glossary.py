"""The glossary is in order, every word of it is used on the pages, and every entry leads there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT, prose

GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRIES = dict(re.findall(r"^## (.+)\n\n(.+(?:\n.+)*)", GLOSSARY.read_text("utf-8"), re.MULTILINE))
# The page that the entries themselves are on is no use of them, nor is the list of changes.
ELSEWHERE = [page for page in PAGES if page != GLOSSARY and page.name != "CHANGELOG.md"]
USED = re.sub(r"\s+", " ", "\n".join(map(prose, ELSEWHERE))).lower()


def test_entries_are_in_alphabetical_order():
    assert list(ENTRIES) == sorted(ENTRIES, key=str.lower)
    assert len(ENTRIES) == GLOSSARY.read_text("utf-8").count("\n## ")


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_word_is_used_on_another_page(entry):
    assert re.search(rf"\b{re.escape(entry.lower())}", USED), entry


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_leads_to_a_use_or_to_another_entry(entry):
    text = ENTRIES[entry]
    pages = re.findall(r"\]\(([a-z-]+\.md)(?:#[a-z0-9-]+)?\)", text)
    assert pages or text.startswith("See ["), entry


# What newcomers asked about: where a page first says it, it leads to what it means.
ASKED = {
    "handshake": r"handshake",
    "top-1": r"top-1|top-1-agreement",
    "union budget": r"union-budget",
    "nats": r"nats",
}
_HIDDEN = re.compile(r"^ *```.*?^ *```$|^#[^\n]*|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("word", ASKED)
def test_the_first_use_on_a_page_leads_to_the_glossary(word):
    """Or a link to the entry stands above it. Code, headings and addresses are no uses."""
    bare = []
    for page in ELSEWHERE:
        text = page.read_text("utf-8")
        shown = _HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        use = re.search(rf"(?<![\w-]){word}(?![\w-])", shown, re.IGNORECASE)
        link = re.search(rf"glossary\.md#(?:{ASKED[word]})\b", text)
        if use and page.name != "commands.md":
            line = text.count("\n", 0, use.start()) + 1
            if link is None or text.count("\n", 0, link.start()) + 1 > line:
                bare.append(f"{page.relative_to(ROOT)}:{line}")
    assert not bare
