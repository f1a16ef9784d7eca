"""``leanmoe fleet set``: one level on every server, and a report of who has it."""

from __future__ import annotations

import argparse

from leanmoe.command import Command, Result
from leanmoe_server.fleet.aligning import add_target_arguments, align, checked, target_of
from leanmoe_server.fleet.members import add_member_arguments, roster_of
from leanmoe_server.fleet.replica import add_caller_arguments, caller_of
from leanmoe_server.fleet.standing import table


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser, required=True)
    add_member_arguments(parser)
    add_caller_arguments(parser)


def _run(args: argparse.Namespace) -> Result:
    wanted, caller = target_of(args), caller_of(args)
    return checked(align(caller, roster_of(args).members(), wanted))


COMMAND = Command(
    name="fleet set",
    help="Bring one level to every server. Those that have it are left alone, so the command may "
    "be run again at any time. Exit code 1 with the report if a server was not reached.",
    example="leanmoe fleet set --level 0.4 --replica 10.0.0.1:8000 --replica 10.0.0.2:8000",
    add_arguments=_add_arguments,
    run=_run,
    show=table,
)
