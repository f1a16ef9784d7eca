"""The mix of skip levels that requests ask for, sent as ``expert_skipping``."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from leanmoe.errors import InputError
from leanmoe.files.digest import whole_number
from leanmoe.policy import check_level

_GRAMMAR = (
    "expected LEVEL or LEVEL:WEIGHT, separated by commas, where LEVEL is off, server, a number "
    'such as 0.4, kld=0.02 or a JSON object such as {"level": 0.4}'
)
_BARE = re.compile(r"[^:,]+")
_WEIGHT = re.compile(r":([^,]*)")
_KEYS = {"level", "max_kld", "deterministic"}


class WeightedLevel(BaseModel):
    """A value of ``expert_skipping`` (``None``: the key is left out) and how often it is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Any
    weight: float

    @property
    def text(self) -> str | None:
        """The value as JSON text, as records hold it."""
        return None if self.value is None else json.dumps(self.value)


def parse_levels(text: str) -> list[WeightedLevel]:
    """``off:1,0.5:2`` and the like; ``InputError`` names the part that is wrong."""
    levels, position = [], 0
    while True:
        value, position = _value(text, position)
        weight = 1.0
        if match := _WEIGHT.match(text, position):
            weight, position = _weight(match.group(1), text), match.end()
        levels.append(WeightedLevel(value=value, weight=weight))
        if position == len(text):
            return levels
        if text[position] != ",":
            raise InputError(f"levels are {text!r}, {_GRAMMAR}")
        position += 1


def _value(text: str, position: int) -> tuple[Any, int]:
    start = position + len(text[position:]) - len(text[position:].lstrip())
    if text[start : start + 1] == "{":
        try:
            value, end = json.JSONDecoder(parse_int=whole_number).raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"levels are {text!r}, {text[start:]!r} does not begin with a JSON object ({error})"
            ) from None
        return _checked(value, text), end
    match = _BARE.match(text, start)
    if not match:
        raise InputError(f"levels are {text!r}, {_GRAMMAR}")
    return _word(match.group().strip(), text), match.end()


def _word(word: str, text: str) -> Any:
    if word in ("off", "server"):
        return "off" if word == "off" else None
    key, equals, number = word.rpartition("=")
    if key not in ("", "kld") or (equals and not key):
        raise InputError(f"levels are {text!r}, {_GRAMMAR}")
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"levels are {text!r}, {word!r} is no level; {_GRAMMAR}") from None
    return _checked({"max_kld" if key else "level": value}, text)


def _checked(value: dict[str, Any], text: str) -> dict[str, Any]:
    if not value.keys() <= _KEYS or ("level" in value) == ("max_kld" in value):
        raise InputError(
            f"levels are {text!r}, {json.dumps(value)} is no level: it takes level or max_kld, "
            "and deterministic"
        )
    if "level" in value:
        check_level(value["level"], f"a level in levels {text!r}")
    elif type(value["max_kld"]) not in (int, float) or not 0 < value["max_kld"] < math.inf:
        raise InputError(f"levels are {text!r}, max_kld is {value['max_kld']!r}, expected above 0")
    return value


def _weight(digits: str, text: str) -> float:
    try:
        weight = float(digits)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"levels are {text!r}, the weight {digits!r} is no number above 0")
    return weight
