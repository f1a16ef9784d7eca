"""What a JSON file is like in which one number is ``true``, which many readers take for 1."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

Place = tuple[str | int, ...]


def numbers_of(content: Any, place: Place = ()) -> Iterator[Place]:
    """Where numbers stand."""
    if isinstance(content, dict | list):
        inside = content.items() if isinstance(content, dict) else enumerate(content)
        for key, one in inside:
            yield from numbers_of(one, (*place, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield place


def with_true(content: Any, place: Place) -> Any:
    """A copy with ``true`` at that place."""
    changed = deepcopy(content)
    held = changed
    for key in place[:-1]:
        held = held[key]
    held[place[-1]] = True
    return changed
