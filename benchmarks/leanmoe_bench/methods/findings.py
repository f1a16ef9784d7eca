"""What the published methods promise, held against the rows of a comparison.

Each finding says what was expected, the figures, and whether they agree. Intervals are of each row
against the full model: where two overlap, they do not tell the rows apart, though window by window
the difference might (``bench cuts``). Findings whose rows were not run are absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Ratio = dict[str, float]
# Methods that choose experts from the same score bundle.
RIVALS = ("frequency", "reap", "soft-activation", "ean", "weighted-ean", "m-smoe", "random")


def joint(ratios: Sequence[Ratio]) -> Ratio:
    """Geometric mean over domains, whose intervals are independent of one another."""
    mean = math.fsum(math.log(one["mean"]) for one in ratios) / len(ratios)
    half = math.hypot(*(math.log(one["high"] / one["low"]) / 2 for one in ratios)) / len(ratios)
    ends = (("mean", 0), ("low", -1), ("high", 1))
    return {key: math.exp(mean + sign * half) for key, sign in ends}


def ratios(row: Row, leave: str | None = None) -> list[Ratio]:
    """Perplexity over the full model's, by domain."""
    domains = row["eval"]["domains"]
    return [one["against"]["ratio"] for name, one in domains.items() if name != leave]


def change(ratio: Ratio) -> str:
    """As a change in per cent with its interval."""
    return f"{ratio['mean'] - 1:+.1%} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%})"


@dataclass(frozen=True)
class Table:
    """Rows by what they are."""

    rows: Sequence[Row]

    def find(self, method: str, budget: str, calibration: str | None = None) -> list[Row]:
        return [
            row
            for row in self.rows
            if (row["method"], row["budget"]) == (method, budget)
            and calibration in (None, row["calibration"])
        ]

    def total(self, method: str, budget: str, calibration: str | None = None) -> Ratio | None:
        """All domains; of several seeds the geometric mean, whose windows are the same."""
        found = [joint(ratios(row)) for row in self.find(method, budget, calibration)]
        if not found:
            return None
        logs = {key: [math.log(one[key]) for one in found] for key in found[0]}
        return {key: math.exp(math.fsum(held) / len(held)) for key, held in logs.items()}


def findings(rows: Sequence[Row], domain: str) -> Iterator[str]:
    """Sentences, one per expectation and budget."""
    table = Table(rows)
    keeps = list(dict.fromkeys(row["budget"] for row in rows if row["budget"].startswith("keep")))
    for budget in keeps:
        yield from _least(table, budget)
    for budget in keeps:
        yield from _domain(table, budget, domain)
    yield from _tasks(table)
    for budget in ("50 %", "2:4"):
        yield from _pair(table, budget, "MoE-Pruner", "moe-pruner", "wanda")
        yield from _regained(table, budget)


def _least(table: Table, budget: str) -> Iterator[str]:
    mine = table.total("naee", budget, "mix")
    others = {name: table.total(name, budget) for name in RIVALS}
    rivals = {name: one for name, one in others.items() if one is not None}
    if mine is None or not rivals:
        return
    best = min(rivals, key=lambda name: rivals[name]["mean"])
    said = ", ".join(f"{name} {one['mean'] - 1:+.1%}" for name, one in _ranked(rivals))
    yield (
        f"NAEE loses least, {budget}: {_verdict(mine, rivals[best])}. NAEE {change(mine)}; {said} "
        "(random: mean of its seeds)."
    )


def _ranked(found: dict[str, Ratio]) -> Iterable[tuple[str, Ratio]]:
    return sorted(found.items(), key=lambda pair: pair[1]["mean"])


def _verdict(mine: Ratio, other: Ratio) -> str:
    if mine["low"] <= other["high"] and other["low"] <= mine["high"]:
        side = "ahead" if mine["mean"] <= other["mean"] else "behind"
        return f"{side}, not told apart here"
    return "holds" if mine["mean"] < other["mean"] else "does not hold"


def _domain(table: Table, budget: str, domain: str) -> Iterator[str]:
    kept, mix = (table.find("naee", budget, name) for name in ("domain", "mix"))
    if not kept or not mix:
        return
    own, of_mix = (row[0]["eval"]["domains"][domain]["against"]["ratio"] for row in (kept, mix))
    others, theirs = (joint(ratios(row[0], leave=domain)) for row in (kept, mix))
    yield (
        f"Data of one domain keeps it, {budget}: {_verdict(own, of_mix)}. On `{domain}`, NAEE "
        f"calibrated on it {change(own)}, on the mix {change(of_mix)}; on the others "
        f"{change(others)} and {change(theirs)}."
    )


def _tasks(table: Table) -> Iterator[str]:
    for found in table.find("eep", "keep 4"):
        task = found["calibration"]
        for rival in table.find("naee", "keep 4", "mix"):
            mine, other = (row["eval"]["tasks"][task] for row in (found, rival))
            apart = mine["low"] > other["high"] or mine["high"] < other["low"]
            holds = "holds" if mine["accuracy"] > other["accuracy"] else "does not hold"
            sure = "" if apart else ", not told apart here"
            yield (
                f"EEP beats NAEE on its own task, keep 4: {holds}{sure}. `{task}`, held-out items: "
                f"EEP {_accuracy(mine)}, NAEE {_accuracy(other)}, the full model "
                f"{mine['against']['accuracy']:.0%}."
            )


def _accuracy(task: dict[str, Any]) -> str:
    return f"{task['accuracy']:.0%} ({task['low']:.0%} to {task['high']:.0%})"


def _pair(table: Table, budget: str, name: str, method: str, rival: str) -> Iterator[str]:
    mine, other = table.total(method, budget), table.total(rival, budget)
    if mine is not None and other is not None:
        yield (
            f"{name} loses no more than {rival}, {budget}: {_verdict(mine, other)}. "
            f"{change(mine)} and {change(other)}."
        )


def _regained(table: Table, budget: str) -> Iterator[str]:
    before = table.total("moe-pruner", budget)
    after = table.total("moe-pruner, distilled", budget)
    if before is None or after is None:
        return
    share = 1 - math.log(after["mean"]) / math.log(before["mean"])
    holds = "holds" if share >= 0.5 else "does not hold"
    yield (
        f"Distillation regains half of what {budget} lost: {holds}. {change(before)} before, "
        f"{change(after)} after: {share:.0%} of the log loss regained."
    )
