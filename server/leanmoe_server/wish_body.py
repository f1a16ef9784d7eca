"""A wish as JSON: the body of ``PUT /v1/expert_skipping`` and a request's ``expert_skipping``.

Exactly one of ``level`` and ``max_kld``; a single request may also say ``"off"``.
"""

from __future__ import annotations

import json
from typing import Any

from leanmoe.errors import InputError
from leanmoe.policy import EXACT, check_level
from leanmoe_server.settings import Wish, check_max_kld

MAX_BODY_BYTES = 4096
REQUEST_KEY = "expert_skipping"
_EXPECTED = 'expected {"level": 0.5} or {"max_kld": 0.05}'


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise InputError(f"the body names a key twice: {keys}; {_EXPECTED}")
    return dict(pairs)


def _parse(body: bytes) -> Any:
    try:
        # Integers of any length become floats, so none can overflow a later check.
        return json.loads(body, object_pairs_hook=_no_duplicates, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON ({error}); {_EXPECTED}") from None


def parse_wish(body: bytes) -> Wish:
    """The wish in a ``PUT`` body; ``InputError`` says what is wrong with it."""
    return _wish_of(_parse(body), "the body", _EXPECTED)


def request_wish(content: Any) -> Wish:
    """The wish in the ``expert_skipping`` of a single request."""
    if content == "off":
        return Wish(level=EXACT)
    return _wish_of(content, f"{REQUEST_KEY!r}", f'{_EXPECTED} or "off"')


def _wish_of(content: Any, what: str, expected: str) -> Wish:
    if not isinstance(content, dict):
        raise InputError(f"{what} is not a JSON object; {expected}")
    unknown = sorted(set(content) - {"level", "max_kld"})
    if unknown:
        raise InputError(f"{what} has unknown keys {unknown}; {expected}")
    if len(content) != 1:
        found = "both keys" if content else "neither key"
        raise InputError(f"{what} has {found}; {expected}")
    if "level" in content:
        return Wish(level=check_level(content["level"], "level"))
    return Wish(max_kld=check_max_kld(content["max_kld"]))
