"""``leanmoe fleet watch``: what changes among the servers, and a level kept on all of them."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_server.fleet.aligning import add_target_arguments, align, target_of
from leanmoe_server.fleet.members import Roster, add_member_arguments, roster_of
from leanmoe_server.fleet.replica import Caller, add_caller_arguments, caller_of
from leanmoe_server.fleet.standing import report, standings, table

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser, required=False)
    add_member_arguments(parser)
    add_caller_arguments(parser)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks (10)")
    parser.add_argument("--times", type=int, help="looks until the end (without: until stopped)")


def _run(args: argparse.Namespace) -> Result:
    wanted, caller, roster = target_of(args), caller_of(args), roster_of(args)
    if not 0 < args.every < float("inf") or (args.times is not None and args.times < 1):
        raise InputError("--every is a number of seconds above 0, --times one from 1 up")
    if wanted and caller.key is None:
        align(caller, [], wanted)
    before: dict[str, Any] = {}
    for look in count(1):
        before = _look(caller, roster, wanted, before, as_json=args.json)
        if look == args.times:
            break
        time.sleep(args.every)
    return {"looks": look}


def _look(
    caller: Caller,
    roster: Roster,
    wanted: Mapping[str, Any],
    before: dict[str, Any],
    as_json: bool,
) -> dict[str, Any]:
    """Once: bring the level to whoever has it not, and print the report where it is a new one."""
    try:
        members = roster.members()
        found = align(caller, members, wanted) if wanted else standings(caller, members)
    except InputError as error:
        # A roll-out brings another version for a while, and a DNS name is empty before the first.
        logger.warning("%s", error)
        return before
    now = report(found)
    if _without_outcomes(now) != _without_outcomes(before):
        print(json.dumps(now, ensure_ascii=False) if as_json else table(now), flush=True)
    return now


def _without_outcomes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = result.get("members", [])
    return [{k: v for k, v in row.items() if k != "outcome"} for row in rows]


COMMAND = Command(
    name="fleet watch",
    help="Say what changes among the servers, looking DNS names up anew each time; with a level, "
    "bring it to every server that has not, as one that came later.",
    example="leanmoe fleet watch --dns lean-leanmoe-fleet.models.svc --max-kld 0.05 --every 30",
    add_arguments=_add_arguments,
    run=_run,
)
