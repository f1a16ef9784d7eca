"""The blocks of README and docs run, in order, in one folder per page, on tiny checkpoints."""

from __future__ import annotations

import shutil

import pytest

from tests.docs.forked import forked_leanmoe
from tests.docs.pages import PAGES, ROOT, RUNNABLE, SERVER, STARTING, fences, runnable
from tests.docs.running import Session
from tests.docs.stand_ins import write_stand_ins

ALL = [fence for page in PAGES for fence in fences(page)]


@pytest.fixture(scope="module")
def leanmoe(tmp_path_factory):
    with forked_leanmoe(tmp_path_factory.mktemp("bin")) as folder:
        yield folder


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return write_stand_ins(tmp_path_factory.mktemp("stand-ins") / "folder")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if runnable(p, on_server=False)], ids=lambda page: page.stem
)
def test_the_blocks_of_a_page_run(page, leanmoe, stand_ins, tmp_path):
    folder = shutil.copytree(stand_ins, tmp_path / "here")
    session = Session(folder, path=leanmoe)
    for fence in runnable(page, on_server=False):
        session.run(fence)


def test_a_block_that_fails_is_told_with_its_place(leanmoe, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nleanmoe plan ./absent | cat\necho never\n```\n", encoding="utf-8")
    (fence,) = fences(page)
    object.__setattr__(fence, "page", ROOT / "page.md")
    with pytest.raises(AssertionError, match=r"page\.md:1 ended with 2:\n.*absent"):
        Session(tmp_path, path=leanmoe).run(fence)


def test_comments_above_blocks_are_ones_that_are_known():
    known = (SERVER, STARTING, "not run: ")
    strange = [
        f"{f.where}: {f.comment}" for f in ALL if f.comment and not f.comment.startswith(known)
    ]
    assert not strange


def test_a_block_that_needs_a_server_says_so():
    silent = [
        fence.where
        for page in PAGES
        for fence in runnable(page, on_server=False)
        if "http://" in fence.text
    ]
    assert not silent, f"put <!-- {SERVER} --> or <!-- not run: REASON --> above: {silent}"


def test_blocks_are_labelled_and_those_with_commands_run_or_say_why():
    unlabelled = [fence.where for fence in ALL if not fence.language]
    assert not unlabelled, f"give these a language, text where it is none: {unlabelled}"
    other = [
        fence.where
        for fence in ALL
        if fence.language not in (*RUNNABLE, "text")
        and any(line.startswith("leanmoe ") for line in fence.commands)
    ]
    assert not other, f"commands belong into bash blocks: {other}"


def test_excerpts_stand_in_their_files():
    excerpts = [fence for fence in ALL if fence.excerpt_of]
    assert excerpts
    for fence in excerpts:
        source = (ROOT / fence.excerpt_of).read_text(encoding="utf-8")
        assert f"\n{fence.text}" in source, f"{fence.where} is not in {fence.excerpt_of}"


def test_not_running_is_the_exception():
    asked = [fence for fence in ALL if fence.language in RUNNABLE and not fence.excerpt_of]
    left_out = [fence for fence in asked if fence.comment.startswith("not run: ")]
    assert all(len(fence.not_run) > 3 for fence in left_out)
    assert len(left_out) < len(asked) / 2, [fence.where for fence in left_out]
