"""What ``leanmoe COMMAND --help`` prints, written from the parsers ahead of time.

A parser takes its command's modules, and these need packages that an installation may lack: torch,
vLLM, Locust. The words have to be there all the same, and at once.
``docs/tools/command_reference.py`` writes them, and a test holds them to the parsers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

FOLDER = Path(__file__).parent / "help"


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether ``-h`` or ``--help`` is among a command's own arguments."""
    own = takewhile(lambda one: one != "--", arguments)
    return any(one in ("-h", "--help") for one in own)


def file_of(command: str) -> Path:
    """Where the text of a command is, such as ``bench kernel``."""
    return FOLDER / f"{command.replace(' ', '-')}.txt"


def help_text(command: str) -> str | None:
    """The text of a command; ``None`` for a group, which is a table of commands."""
    path = file_of(command)
    return path.read_text(encoding="utf-8") if path.is_file() else None
