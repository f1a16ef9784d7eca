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
