"""Every ``leanmoe ...`` on any page is one that the command takes."""

from __future__ import annotations

import re

import pytest

from tests.docs.command_lines import RefusedError, check, command_lines
from tests.docs.pages import PAGES, fences, prose

_SPAN = re.compile(r"`((?:[A-Z_]+=\S+ )?leanmoe [^`]+)`")
_SYNOPSIS = re.compile(r"leanmoe ([a-z]+) [^\n]*\[")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def lines(page):
    """(place, words, whether it is a line to type)."""
    for fence in fences(page):
        if synopsis := _SYNOPSIS.match(fence.text):
            for option in _OPTION.findall(fence.text):
                yield fence.where, [synopsis[1], option], False
        elif fence.language in ("bash", "text", "console"):
            for words in command_lines(fence.text):
                yield fence.where, words, True
    for span in _SPAN.findall(re.sub(r"\s*\n\s*", " ", prose(page))):
        for words in command_lines(span.replace("[", " ").replace("]", " ").replace("|", " ")):
            yield f"{page.name}: `{span}`", words, False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_the_page_is_taken(page):
    wrong = []
    for where, words, whole in lines(page):
        try:
            check(words, whole=whole)
        except RefusedError as why:
            wrong.append(f"{where}: leanmoe {' '.join(words)}: {why}")
    assert not wrong, "\n".join(wrong)


def test_the_pages_have_many_commands():
    assert sum(1 for page in PAGES for _ in lines(page)) > 100


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("leanmoe prun ./m", "no command"),
        ("leanmoe prune ./m --metod naee -o ./lean", "--metod"),
        ("leanmoe prune ./m --method nae -o ./lean", "invalid choice"),
        ("leanmoe prune ./m --method naee --keep", "expected one argument"),
        ("leanmoe prune ./m --method naee --keep 5", "-o"),
        ("leanmoe bench sevre", "no command"),
        ("leanmoe bench kernel --mode eager", "--mode"),
        ("leanmoe serve ./m --max-kld 0.05 --max-modl-len 7", "--max-modl-len"),
    ],
)
def test_what_is_wrong_is_seen(line, why):
    (words,) = command_lines(f"FOO=1 {line} | head  # a comment")
    with pytest.raises(RefusedError, match=why):
        check(words, whole=True)
