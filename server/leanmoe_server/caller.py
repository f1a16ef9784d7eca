"""Who a request is from, as the door found: its place in the ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

_PLACE = "leanmoe.caller"


@dataclass(frozen=True)
class Caller:
    """The name of the key that opened the door; ``admin`` when it was an administrator's."""

    name: str
    admin: bool = False


def keep_caller(scope: Scope, caller: Caller) -> None:
    scope[_PLACE] = caller


def caller_of(scope: Any) -> Caller | None:
    """``None`` for public routes, and wherever no door stands before a route."""
    found = scope.get(_PLACE)
    return found if isinstance(found, Caller) else None
