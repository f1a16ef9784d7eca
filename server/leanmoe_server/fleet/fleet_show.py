"""``leanmoe fleet show``: which server has which level, version and model."""

from __future__ import annotations

import argparse

from leanmoe.command import Command, Result
from leanmoe.errors import CheckError
from leanmoe_server.fleet.members import add_member_arguments, roster_of
from leanmoe_server.fleet.replica import add_caller_arguments, caller_of
from leanmoe_server.fleet.standing import agreed, report, standings, table


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_member_arguments(parser)
    add_caller_arguments(parser)


def _run(args: argparse.Namespace) -> Result:
    found = standings(caller_of(args), roster_of(args).members())
    if not agreed(found):
        raise CheckError(
            "the members do not agree, are not all ready or not all reached; `leanmoe fleet set` "
            "brings one level to all of them",
            report(found),
        )
    return report(found)


COMMAND = Command(
    name="fleet show",
    help="Which server has which level, version and model. Exit code 1 where they do not agree.",
    example="leanmoe fleet show --replicas-file replicas.txt --json",
    add_arguments=_add_arguments,
    run=_run,
    show=table,
)
