"""Conditions as people write them: ``ttft_p95>2s``, ``goodput<99%``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from leanmoe.errors import InputError

_FORM = re.compile(
    r"(?P<name>[a-z][a-z0-9_.]*)\s*(?P<operator><=|>=|<|>)\s*"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>[A-Za-z%]*)"
)
_POINT = re.compile(r"mean|max|p\d+")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# By kind of figure: what each unit is worth in the one that figures are kept in.
UNITS: Mapping[str, Mapping[str, float]] = {
    "time": {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    "share": {"": 1.0, "%": 1e-2},
    "number": {"": 1.0},
    "ratio": {"": 1.0, "x": 1.0, "%": 1e-2},
    "memory": {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30},
}


@dataclass(frozen=True)
class Condition:
    """``name operator limit``; the limit in seconds, bytes, or a share of one."""

    text: str
    name: str
    operator: str
    limit: float

    def holds(self, value: float) -> bool:
        return _OPERATORS[self.operator](value, self.limit)


def parse_condition(text: str, kinds: Mapping[str, str], option: str, form: str) -> Condition:
    """Read one condition on one of ``kinds`` (figure: kind of unit).

    Raises:
        InputError: naming ``option`` and what is wrong; ``form`` is an example of what is right.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{option} {text!r} is no condition; expected something like {form!r}")
    name = found["name"]
    if name not in kinds:
        raise InputError(f"{option} {text!r}: no figure {name!r}; {_suggestion(name, kinds)}")
    units = UNITS[kinds[name]]
    if found["unit"] not in units:
        raise InputError(
            f"{option} {text!r}: {name} takes a {_expected(units)}, "
            f"found {found['number'] + found['unit']!r}"
        )
    limit = float(found["number"]) * units[found["unit"]]
    return Condition("".join(text.split()), name, found["operator"], limit)


def _suggestion(name: str, names: Iterable[str]) -> str:
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(_families(known))}"


def _families(names: Iterable[str]) -> list[str]:
    """Names that differ in their last word only, as one: ``ttft_{mean,p50}``."""
    endings: dict[str, list[str]] = {}
    for name in names:
        stem, _, ending = name.rpartition("_")
        endings.setdefault(stem if _POINT.fullmatch(ending) else name, []).append(name)
    return [
        found[0] if len(found) == 1 else f"{stem}_{{{_last_words(found)}}}"
        for stem, found in endings.items()
    ]


def _last_words(names: Iterable[str]) -> str:
    return ",".join(name.rpartition("_")[2] for name in names)


def _expected(units: Mapping[str, float]) -> str:
    named = " or ".join(unit for unit in units if unit)
    if not named:
        return "number without a unit"
    return f"number {'alone or ' if '' in units else ''}with {named}"
