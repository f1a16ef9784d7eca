"""Who a request is from, as the door found: in the ASGI scope, and wherever its task leads."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

_PLACE = "leanmoe.caller"


@dataclass(frozen=True)
class Caller:
    """The name of the key that opened the door; ``admin`` when it was an administrator's."""

    name: str
    admin: bool = False


_NOW: ContextVar[Caller | None] = ContextVar("leanmoe_caller", default=None)


def keep_caller(scope: Scope, caller: Caller) -> None:
    """``scope`` and this task's request are from ``caller``; each request has a task of its own."""
    scope[_PLACE] = caller
    _NOW.set(caller)


def caller_now() -> Caller | None:
    """Whose request this task works for; ``None`` where it is the server's own work."""
    return _NOW.get()


def caller_of(scope: Any) -> Caller | None:
    """``None`` for public routes, and wherever no door stands before a route."""
    found = scope.get(_PLACE)
    return found if isinstance(found, Caller) else None
