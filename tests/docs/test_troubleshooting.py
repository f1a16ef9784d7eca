"""The sentences on the page of troubles are those that the program says."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## The sentences met most\n")[1].split("\n## ")[0]
SENTENCES = re.findall(r"^\| `(.+?)` \|", SECTION, re.MULTILINE)
FOLDERS = ("core", "server", "pruning_offline", "runtime_patches", "loadtest", "helm")


@pytest.fixture(scope="module")
def said() -> str:
    """All sources, strings that go on in the next line put together."""
    found = [path for one in FOLDERS for path in (ROOT / one).rglob("*")]
    texts = [path.read_text("utf-8") for path in found if path.suffix in (".py", ".tpl")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def test_there_are_twenty_and_more():
    assert len(SENTENCES) == len(set(SENTENCES)) >= 20


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_stands_in_the_program(sentence, said):
    for part in sentence.split(" … "):
        assert part in said, part
