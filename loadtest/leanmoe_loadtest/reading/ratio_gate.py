"""``--fail-if`` of a comparison: conditions on ratios, B over A, such as ``ttft_p95>1.1``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanmoe.errors import InputError
from leanmoe_loadtest.reading.compare import FIGURES
from leanmoe_loadtest.reading.conditions import Condition, parse_condition
from leanmoe_loadtest.reading.gate import OPTION


def parse_ratio_gate(texts: Sequence[str]) -> list[Condition]:
    """Read every condition; the limits are ratios: 1.1, 1.1x or 110%."""
    kinds = dict.fromkeys(FIGURES, "ratio")
    return [parse_condition(text, kinds, OPTION, "ttft_p95>1.1") for text in texts]


def ratio_failures(checks: Sequence[Condition], found: Mapping[str, Any]) -> list[str]:
    """A sentence for every condition that came true."""
    rows = {row["figure"]: row for row in found["rows"]}
    return [sentence for check in checks if (sentence := _failure(check, rows))]


def _failure(check: Condition, rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    row = rows.get(check.name)
    if row is None or row["ratio"] is None:
        needs = "; it needs --slo" if check.name == "goodput" else ""
        raise InputError(f"{OPTION} {check.text!r}: {check.name} was not measured{needs}")
    if not check.holds(row["ratio"]):
        return None
    spread = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{check.text} is true: B/A is {row['ratio']:.3f}{spread}"
