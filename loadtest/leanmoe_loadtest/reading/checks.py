"""``--fail-if``: conditions on a run's figures under which it fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe_loadtest.reading.conditions import Condition, parse_condition
from leanmoe_loadtest.reading.figures import FIGURES, KINDS

OPTION, EXAMPLE = "--fail-if", "ttft_p95>2s"
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_NEEDS = {
    "slo": "it needs --slo",
    "quality": "it needs --quality",
    "steps": "a knee needs three rates or more (--profile sweep, or --arrivals step:A,B,C)",
    "open": "only an open loop has a schedule to be late for (--arrivals)",
}


@dataclass(frozen=True)
class Check:
    """A condition, of the whole run or of one group (``ttft_p95[off]>1s``)."""

    condition: Condition
    group: str | None

    @property
    def text(self) -> str:
        name = self.condition.name
        group = "" if self.group is None else f"[{self.group}]"
        return f"{name}{group}{self.condition.text.removeprefix(name)}"


def parse_checks(texts: Sequence[str]) -> list[Check]:
    """Read every ``--fail-if``; ``InputError`` names the first that is wrong."""
    return [_parse(text) for text in texts]


def _parse(text: str) -> Check:
    found = _GROUP.search(text)
    plain = text if found is None else text[: found.start()] + text[found.end() :]
    condition = parse_condition(plain, KINDS, OPTION, EXAMPLE)
    if found is None:
        return Check(condition, None)
    if not FIGURES[condition.name].grouped:
        raise InputError(f"{OPTION} {text!r}: {condition.name} is measured for the whole run only")
    return Check(condition, found[1].strip())


def check_measurable(
    checks: Sequence[Check],
    given: Mapping[str, bool],
    groups: Collection[str],
    exported: Callable[[], set[str]],
) -> None:
    """Refuse what this run will not measure, before it starts.

    ``given`` says which of ``slo``, ``quality``, ``open`` and ``steps`` the run has, ``groups`` are
    the endpoints and levels it sends, ``exported`` asks the server for its series.
    """
    for check in checks:
        needs = FIGURES[check.condition.name].needs
        if needs is not None and not given[needs]:
            raise InputError(f"{OPTION} {check.text!r} is not measured here: {_NEEDS[needs]}")
        if check.group is not None and check.group not in groups:
            raise InputError(_no_group(check, groups))
    _check_exported([c for c in checks if FIGURES[c.condition.name].series], exported)


def _check_exported(checks: Sequence[Check], exported: Callable[[], set[str]]) -> None:
    names = exported() if checks else set()
    for check in checks:
        series = FIGURES[check.condition.name].series
        if not names & set(series):
            raise InputError(
                f"{OPTION} {check.text!r} is not measured here: the server's /metrics has no "
                f"{series[0]}"
            )


def _no_group(check: Check, groups: Collection[str]) -> str:
    return (
        f"{OPTION} {check.text!r}: the run has no group {check.group!r}; it has "
        f"{', '.join(sorted(groups))}"
    )


def failures(checks: Sequence[Check], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for every condition that came true.

    Raises:
        InputError: a figure was not measured, so the check can say nothing.
    """
    return [sentence for check in checks if (sentence := _failure(check, summary))]


def _failure(check: Check, summary: Mapping[str, Any]) -> str | None:
    value = FIGURES[check.condition.name].value(_part(check, summary))
    if value is None:
        raise InputError(f"{OPTION} {check.text!r}: {check.condition.name} was not measured")
    if not check.condition.holds(value):
        return None
    return f"{check.text} is true: {shown(check.condition.name, value)}"


def _part(check: Check, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    if check.group is None:
        return summary
    groups = {**summary["by_endpoint"], **summary["by_level"]}
    if check.group not in groups:
        raise InputError(_no_group(check, groups))
    return dict(groups[check.group])


def shown(name: str, value: float) -> str:
    """A figure with its unit, as a person reads it."""
    kind = KINDS[name]
    if kind == "time":
        return f"{1e3 * value:.1f} ms"
    if kind == "share":
        return f"{value:.2%}"
    return f"{value / 2**30:.2f} GiB" if kind == "memory" else f"{value:g}"
