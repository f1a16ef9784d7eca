"""How a fleet stands: what each server says, whether they agree, and whether they may be told.

All of it comes from what the servers say now, so a command that was stopped halfway is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe_server.fleet.members import Member
from leanmoe_server.fleet.replica import Caller, ReplicaError

_AT_ONCE = 16
_SHOWN = ("level", "max_kld", "phases", "union_budget", "version", "ready", "leanmoe", "model")


@dataclass(frozen=True)
class Standing:
    """One server: what it ``says`` of its policy, or the ``error`` in place of that.

    ``outcome`` is what a change came to: ``changed``, ``unchanged`` or ``failed``; else empty.
    """

    member: Member
    says: dict[str, Any] | None = None
    error: str | None = None
    outcome: str = ""

    def row(self) -> dict[str, Any]:
        """A line of the report."""
        says = self.says or {}
        row: dict[str, Any] = {"address": self.member.url, "reachable": self.says is not None}
        row |= {key: says.get(key) for key in _SHOWN}
        row |= {"outcome": self.outcome} if self.outcome else {}
        return row | ({"error": self.error} if self.error else {})


def standings(caller: Caller, members: Sequence[Member]) -> list[Standing]:
    """What every member says, asked at once."""

    def ask(member: Member) -> Standing:
        try:
            return Standing(member, caller.show(member))
        except ReplicaError as error:
            return Standing(member, error=str(error))

    return for_each(ask, members)


def for_each(
    work: Callable[[Any], Standing], items: Sequence[Any], at_once: int = _AT_ONCE
) -> list[Standing]:
    """``work`` on all items in threads, results in their order."""
    if not items:
        return []
    with ThreadPoolExecutor(min(at_once, len(items))) as pool:
        return list(pool.map(work, items))


def check_one_release(found: Iterable[Standing]) -> None:
    """``InputError`` where a member runs another LeanMoE or another model than the first."""
    reached = [one for one in found if one.says is not None]
    for key, what in (("leanmoe", "LeanMoE"), ("model", "model")):
        first = reached[0] if reached else None
        for one in reached[1:]:
            has, expected = (one.says or {}).get(key), ((first and first.says) or {}).get(key)
            if first is not None and has != expected:
                raise InputError(
                    f"{one.member.url} serves {what} {has} and {first.member.url} {what} "
                    f"{expected}: a level means the same on one release only; nothing was "
                    "changed, name the members of one release"
                )


def agreed(found: Sequence[Standing]) -> bool:
    """True where every member was reached, is ready and has the same policy in force."""
    keys = ("level", "max_kld", "phases", "union_budget", "union_mode", "leanmoe", "model")
    policies = {tuple((one.says or {}).get(key) for key in keys) for one in found}
    return len(policies) == 1 and all((one.says or {}).get("ready") for one in found)


def report(found: Sequence[Standing]) -> dict[str, Any]:
    """What the command prints: a row per member, and whether they agree."""
    return {"agreed": agreed(found), "members": [one.row() for one in found]}


def table(result: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [_line(row) for row in result["members"]]
    widths = [max(len(line[i]) for line in (_HEAD, *lines)) for i in range(len(_HEAD))]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (_HEAD, *lines)
    ]
    errors = [f"{row['address']}: {row['error']}" for row in result["members"] if "error" in row]
    return "\n".join([*rows, *errors])


_HEAD = ("address", "level", "max_kld", "version", "ready", "leanmoe", "model", "outcome")


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    model = str(row["model"] or "").removeprefix("sha256:")[:12]
    ready = "unreachable" if not row["reachable"] else "yes" if row["ready"] else "no"
    cells = {**row, "model": model, "ready": ready, "outcome": row.get("outcome", "")}
    return tuple("-" if cells[key] in (None, "") else str(cells[key]) for key in _HEAD)
