"""A function of vLLM replaced in place, once per process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leanmoe.seams import as_ours, is_ours

Function = Callable[..., Any]


def replace_once(holder: Any, name: str, around: Callable[[Function], Function]) -> None:
    """Put what ``around`` makes of a module's or a class's function there, unless it is there."""
    stock = getattr(holder, name)
    if not is_ours(stock):
        setattr(holder, name, as_ours(around(stock)))
