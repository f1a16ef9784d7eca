"""Brings one level to every server of a fleet, those first asked that do not have it yet.

The first change is made alone: what one server refuses (a level past its cap, a model without a
curve) is refused before any other was told.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from leanmoe.errors import CheckError, InputError
from leanmoe.policy import check_level
from leanmoe_server.fleet.members import Member
from leanmoe_server.fleet.replica import Caller, ReplicaError
from leanmoe_server.fleet.standing import Standing, check_one_release, for_each, report, standings

# A change waits for a step of the engine, which a long prefill makes long.
CHANGE_SECONDS = 150.0
_REFUSED = (400, 409, 422)


def add_target_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options that say which level."""
    target = parser.add_mutually_exclusive_group(required=required)
    target.add_argument("--level", type=float, help="0 exact to 1 top-1 only")
    target.add_argument(
        "--max-kld", type=float, help="highest level whose measured KLD bound stays under this"
    )
    parser.add_argument("--reason", help="recorded by every server beside the change")


def target_of(args: argparse.Namespace) -> dict[str, Any]:
    """The body of the change; empty where none is asked for."""
    if args.level is not None:
        wanted: dict[str, Any] = {"level": check_level(args.level, "--level")}
    elif args.max_kld is not None:
        if not 0 <= args.max_kld < float("inf"):
            raise InputError(f"--max-kld is {args.max_kld}, expected a finite number from 0 up")
        wanted = {"max_kld": args.max_kld}
    else:
        return {}
    return wanted | ({} if args.reason is None else {"reason": args.reason})


def has(says: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True where a ready server has the target in force already."""
    same = says.get("max_kld") == wanted.get("max_kld")
    level = "level" not in wanted or says.get("level") == wanted["level"]
    return bool(says.get("ready")) and same and level


def align(caller: Caller, members: Sequence[Member], wanted: Mapping[str, Any]) -> list[Standing]:
    """How each member stands after the change; ``InputError`` before any was changed."""
    if caller.key is None:
        raise InputError(
            "changing the level needs the admin key of the servers: give --admin-key-file FILE "
            "or LEANMOE_ADMIN_KEY"
        )
    found = standings(caller, members)
    check_one_release(found)
    differ = [one for one in found if one.says is not None and not has(one.says, wanted)]
    first = [_changed(caller, one, wanted, alone=True) for one in differ[:1]]
    rest = for_each(lambda one: _changed(caller, one, wanted), differ[1:])
    after = {one.member: one for one in (*first, *rest)}
    return [after.get(one.member) or _left(one) for one in found]


def _left(one: Standing) -> Standing:
    outcome = "failed" if one.says is None else "unchanged"
    return Standing(one.member, one.says, one.error, outcome)


def _changed(
    caller: Caller, one: Standing, wanted: Mapping[str, Any], alone: bool = False
) -> Standing:
    try:
        says = caller.change(one.member, wanted, max(CHANGE_SECONDS, caller.timeout_seconds))
    except ReplicaError as error:
        if alone and error.status in _REFUSED:
            raise InputError(f"{error}; nothing was changed") from None
        return Standing(one.member, one.says, str(error), "failed")
    return Standing(one.member, says, outcome="changed")


def checked(found: Sequence[Standing]) -> dict[str, Any]:
    """The report of a change; ``CheckError`` with it where a member has not what was asked for."""
    result, failed = report(found), [one for one in found if one.outcome == "failed"]
    if failed:
        raise CheckError(
            f"{len(failed)} of {len(found)} members have not the level that was asked for: "
            f"{failed[0].error}; run the command again once they answer",
            result,
        )
    return result
