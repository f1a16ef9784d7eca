"""``docs/commands.md`` is what its script makes of the parsers as they are."""

from __future__ import annotations

import importlib.util

import pytest

from leanmoe.cli import LEANMOE
from leanmoe.command import parser_of
from leanmoe.dispatch import Group
from leanmoe.help_texts import FOLDER
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def script():
    path = ROOT / "docs" / "tools" / "command_reference.py"
    spec = importlib.util.spec_from_file_location("command_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script):
    written = script.PAGE.read_text(encoding="utf-8")
    assert written == script.page(), "run python docs/tools/command_reference.py"


def test_what_help_prints_is_what_the_parsers_say(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", script.COLUMNS)
    found = {path: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert found == script.helps(), "run python docs/tools/command_reference.py"


@pytest.mark.parametrize("command", LEANMOE.every(), ids=lambda command: command.name)
def test_every_option_of_every_command_is_there(command, script):
    section = script.page().split(f"\n## leanmoe {command.name}\n")[1].split("\n## ")[0]
    assert command.example in section
    if isinstance(command, Group):
        assert all(f"`{command.called} {name}`" in section for name in command.table)
        return
    for action in parser_of(command)._actions:
        if action.dest not in script.COMMON:
            shown = action.option_strings[-1:] or [action.metavar or action.dest]
            assert f"`{shown[0]}" in section
