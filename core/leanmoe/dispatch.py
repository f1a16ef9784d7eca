"""A table of commands, each imported only when it is called: ``leanmoe`` and its groups."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from leanmoe.command import Command, run_command
from leanmoe.extras import install_problem
from leanmoe.help_texts import asks_for_help, help_text

Table = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """Commands under one word, by name: where each is, and what it does.

    A module holds its command as ``COMMAND``, which may be a group again. ``name`` is empty for
    ``leanmoe`` itself.
    """

    name: str
    table: Table
    help: str = ""
    example: str = ""

    @property
    def called(self) -> str:
        """As a person types it."""
        return f"leanmoe {self.name}".strip()

    def usage(self) -> str:
        """The text of ``--help``."""
        width = max(map(len, self.table))
        lines = [f"  {name:<{width}}  {line}" for name, (_, line) in self.table.items()]
        about = [self.help, ""] if self.help else []
        example = ["", "example:", f"  {self.example}"] if self.example else []
        ending = f"{self.called} COMMAND --help says more."
        head = f"usage: {self.called} COMMAND [options]"
        return "\n".join([head, "", *about, *lines, *example, "", ending])

    def load(self, name: str) -> Command | Group:
        """The command behind a name of the table."""
        found: Command | Group = import_module(self.table[name][0]).COMMAND
        return found

    def every(self) -> Iterator[Command | Group]:
        """All commands in the order of the table, those of a group after it."""
        for name in self.table:
            found = self.load(name)
            yield found
            if isinstance(found, Group):
                yield from found.every()

    def main(self, argv: Sequence[str]) -> int:
        """Run one command of the table; the exit code."""
        if not argv or argv[0] in ("-h", "--help"):
            print(self.usage(), file=sys.stdout if argv else sys.stderr)
            return 0 if argv else 2
        name, *rest = argv
        if name not in self.table:
            known = ", ".join(self.table)
            print(f"{self.called}: no command {name!r}; expected one of {known}", file=sys.stderr)
            return 2
        full = f"{self.name} {name}".strip()
        if asks_for_help(rest) and (text := help_text(full)) is not None:
            print(text, end="")
            return 0
        try:
            found = self.load(name)
            return found.main(rest) if isinstance(found, Group) else run_command(found, rest)
        except Exception as error:
            if (problem := install_problem(full, error)) is None:
                raise
            print(problem, file=sys.stderr)
            return problem.exit_code
        except KeyboardInterrupt:
            print(f"leanmoe {full}: interrupted before it began", file=sys.stderr)
            return 130
