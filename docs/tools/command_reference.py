"""Writes ``docs/commands.md`` and the texts of ``leanmoe COMMAND --help`` from the parsers.

    python docs/tools/command_reference.py

On the page stands a table per group of options: the words are those of ``--help``. Both are written
here, so neither changes with the width of a terminal or the version of argparse.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from leanmoe.cli import LEANMOE
from leanmoe.command import Command, parser_of
from leanmoe.dispatch import Group
from leanmoe.help_texts import FOLDER, file_of

PAGE = Path(__file__).parents[1] / "commands.md"
COLUMNS = "80"  # of a terminal, by which argparse breaks lines
COMMON = ("help", "json", "seed", "verbose")
_HEAD = """# Commands

Made from `--help` by `python docs/tools/command_reference.py`; do not edit.

`leanmoe COMMAND --help` prints the same. Exit codes: 0 done, 1 failed, 2 bad input, 130
interrupted. Results go to standard output, progress and warnings to standard error.

| command | does |
|---|---|
"""


def commands() -> list[Command | Group]:
    """Every subcommand in the order of ``leanmoe --help``, a group's own after it."""
    return list(LEANMOE.every())


def page() -> str:
    """The whole page."""
    common = ["## Every command", "", *_table(_common_actions())]
    parts = ["\n".join([*_rows(LEANMOE), "", *common])]
    parts += ["\n".join(_section(one)) for one in commands()]
    return _HEAD + "\n\n".join(parts) + "\n"


def _rows(group: Group) -> Iterator[str]:
    for name, (_, line) in group.table.items():
        called = f"{group.called} {name}"
        yield f"| [`{called}`](#{called.replace(' ', '-')}) | {line} |"


def _common_actions() -> list[argparse.Action]:
    first = next(one for one in commands() if isinstance(one, Command))
    return [action for action in parser_of(first)._actions if action.dest in COMMON]


def _section(command: Command | Group) -> Iterator[str]:
    yield f"## leanmoe {command.name}"
    yield ""
    yield _cell(command.help)
    yield from ("", "```text", command.example, "```")
    if isinstance(command, Group):
        yield from ("", "| command | does |", "|---|---|", *_rows(command))
    else:
        yield from _options(parser_of(command))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.dest not in COMMON]
        if actions:
            title = group.title if group.title and group.title.startswith("--") else None
            yield from ("", *([f"**`{title}`**", ""] if title else ()), *_table(actions, parser))


def _table(
    actions: list[argparse.Action], parser: argparse.ArgumentParser | None = None
) -> Iterator[str]:
    yield "| option | meaning |" if actions[0].option_strings else "| argument | meaning |"
    yield "|---|---|"
    for action in actions:
        required = "**Required.** " if action.option_strings and action.required else ""
        yield f"| {_name(action)} | {required}{_meaning(action, parser)} |"


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _value(action: argparse.Action) -> str:
    name = action.metavar or ("VALUE" if action.choices else action.dest.upper())
    return f"{name} ..." if action.nargs == "+" else str(name)


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser | None) -> str:
    names = {"prog": parser.prog if parser else "leanmoe", **vars(action)}
    said = _cell((action.help or "") % names)
    one_of = f"One of {', '.join(f'`{one}`' for one in action.choices)}." if action.choices else ""
    default = f"Default {action.default}." if _unsaid_default(action) else ""
    return " ".join(
        part
        for part in (said + ("." if said and (one_of or default) else ""), one_of, default)
        if part
    )


def _unsaid_default(action: argparse.Action) -> bool:
    plain = isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool)
    shown = action.default != argparse.SUPPRESS and "default" not in (action.help or "")
    return bool(action.option_strings) and plain and shown


def _cell(text: str) -> str:
    """Help text in a table: bars and brackets would be read as markup."""
    for sign in "|<[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def helps() -> dict[Path, str]:
    """The text of every command's ``--help``, by the file that holds it."""
    os.environ["COLUMNS"] = COLUMNS
    parsers = [parser_of(one) for one in commands() if isinstance(one, Command)]
    return {file_of(one.prog.removeprefix("leanmoe ")): one.format_help() for one in parsers}


def write() -> None:
    """All of it; a text whose command is gone goes too."""
    PAGE.write_text(page(), encoding="utf-8")
    texts = helps()
    for gone in set(FOLDER.glob("*.txt")) - set(texts):
        gone.unlink()
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
