"""Wishes as JSON: the body of ``PUT /v1/expert_skipping`` and a request's ``expert_skipping``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from leanmoe.errors import InputError
from leanmoe.messages import Phases, UnionMode
from leanmoe.policy import EXACT, check_level
from leanmoe.wire import REQUEST_KEY
from leanmoe_server.policy_change import NO_BUDGET, PolicyChange
from leanmoe_server.settings import RequestWish, Wish, check_max_kld

MAX_BODY_BYTES = 4096
_EXPECTED = 'expected {"level": 0.5} or {"max_kld": 0.05}'
_CHANGE = f'{_EXPECTED}, "phases", "union_budget" or "union_mode"'
_REQUEST = f'{_EXPECTED}, "deterministic" beside it, or "off"'
_MOST_EXPERTS = 100_000
T = TypeVar("T", bound=StrEnum)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise InputError(f"the body names a key twice: {keys}; {_CHANGE}")
    return dict(pairs)


def _parse(body: bytes) -> Any:
    try:
        # Integers of any length become floats, so none can overflow a later check.
        return json.loads(body, object_pairs_hook=_no_duplicates, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON ({error}); {_CHANGE}") from None


def parse_change(body: bytes) -> PolicyChange:
    """The change in a ``PUT`` body; ``InputError`` says what is wrong with it."""
    content = _parse(body)
    known = {"level", "max_kld", "phases", "union_budget", "union_mode"}
    _check_keys(content, known, "the body", _CHANGE)
    if not content:
        raise InputError(f"the body has no key; {_CHANGE}")
    has_wish = bool({"level", "max_kld"} & set(content))
    return PolicyChange(
        wish=_wish_of(content, "the body", _CHANGE) if has_wish else None,
        phases=_one_of(Phases, content, "phases"),
        union_budget=_budget(content),
        union_mode=_one_of(UnionMode, content, "union_mode"),
    )


def request_wish(content: Any) -> RequestWish:
    """The wish in the ``expert_skipping`` of a single request."""
    if content == "off":
        return RequestWish(level=EXACT)
    what = f"{REQUEST_KEY!r}"
    _check_keys(content, {"level", "max_kld", "deterministic"}, what, _REQUEST)
    deterministic = content.get("deterministic", False)
    if not isinstance(deterministic, bool):
        raise InputError(f"deterministic is {deterministic!r}, expected true or false")
    wish = _wish_of(content, what, _REQUEST)
    return RequestWish(wish.level, wish.max_kld, deterministic)


def _check_keys(content: Any, known: set[str], what: str, expected: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{what} is not a JSON object; {expected}")
    unknown = sorted(set(content) - known)
    if unknown:
        raise InputError(f"{what} has unknown keys {unknown}; {expected}")


def _wish_of(content: Mapping[str, Any], what: str, expected: str) -> Wish:
    given = sorted({"level", "max_kld"} & set(content))
    if len(given) != 1:
        found = "both level and max_kld" if given else "neither level nor max_kld"
        raise InputError(f"{what} has {found}; {expected}")
    if "level" in content:
        return Wish(level=check_level(content["level"], "level"))
    return Wish(max_kld=check_max_kld(content["max_kld"]))


def _one_of(kind: type[T], content: Mapping[str, Any], key: str) -> T | None:
    if key not in content:
        return None
    try:
        return kind(content[key])
    except ValueError:
        names = " or ".join(repr(member.value) for member in kind)
        raise InputError(f"{key} is {content[key]!r}, expected {names}") from None


def _budget(content: Mapping[str, Any]) -> int | None:
    if "union_budget" not in content:
        return None
    return NO_BUDGET if content["union_budget"] is None else check_budget(content["union_budget"])


def check_budget(experts: Any) -> int:
    """``experts`` as a number of experts per step and layer."""
    number = isinstance(experts, int | float) and not isinstance(experts, bool)
    if not number or not 1 <= experts <= _MOST_EXPERTS or experts != int(experts):
        raise InputError(
            f"union_budget is {experts!r}, expected a whole number of experts from 1 up, or null "
            "for no budget"
        )
    return int(experts)
