"""The comparison as tables: what each cut costs, and how it stands against chance.

Domains weigh equally. Differences are taken window by window against the mean of the random
seeds, and intervals are 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from leanmoe_bench.cuts.cut_runs import PAIRED, RANDOM
from leanmoe_bench.patterns.pattern_page import gap

Row = dict[str, Any]
Losses = dict[str, list[float]]


def mean_of(rows: Sequence[Row]) -> Losses:
    """The mean log loss of several rows in every window."""
    means = {}
    for name in rows[0]["losses"]:
        windows = zip(*(row["losses"][name] for row in rows), strict=True)
        means[name] = [math.fsum(values) / len(rows) for values in windows]
    return means


def tables(rows: Sequence[Row]) -> str:
    """Markdown, a table per number of experts; the full model's row comes first."""
    keeps = list(dict.fromkeys(row["keep"] for row in rows[1:]))
    return "\n".join(
        _table([row for row in rows[1:] if row["keep"] == keep], rows[0]) for keep in keeps
    )


def _table(rows: Sequence[Row], full: Row) -> str:
    domains = list(full["losses"])
    chance = [row for row in rows if row["method"] == RANDOM]
    base = mean_of(chance) if chance else None
    head = ("method", "perplexity", "against random", *domains, "layers that keep an expert")
    lines = [f"Keep {rows[0]['keep']}:", "", _line(head), _line(["---"] * len(head))]
    for name, losses, layers in _judged(rows, chance, full):
        against = "" if base is None or losses == base else _change(*gap(losses, base))
        alone = [_alone(losses, full["losses"], domain) for domain in domains]
        lines.append(_line((name, _change(*gap(losses, full["losses"])), against, *alone, layers)))
    return "\n".join(lines) + "\n"


def _judged(
    rows: Sequence[Row], chance: Sequence[Row], full: Row
) -> Iterator[tuple[str, Losses, str]]:
    """Name, losses and layers that keep an expert: every method, chance, then means of several."""
    experts = 1 + max(expert for row in rows for kept in row["kept"] for expert in kept)
    alone = [
        row for row in rows if not row.get("sample") and row["method"] not in (RANDOM, *PAIRED)
    ]
    for row in alone:
        healed = f", routers distilled in {row['heal']} steps" if row.get("heal") else ""
        yield row["method"] + healed, row["losses"], _layers(row, experts)
    if chance:
        yield f"random, mean of {len(chance)} seeds", mean_of(chance), ""
    several = [row for row in rows if row not in (*alone, *chance)]
    for method in dict.fromkeys(row["method"] for row in several):
        each = [row for row in several if row["method"] == method]
        words = f"{len(each)} {'seeds' if method in PAIRED else 'samples'}"
        costs = ", ".join(_cost(row["losses"], full["losses"]) for row in each)
        yield f"{method}, mean of {words}: {costs}", mean_of(each), ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _change(mean: float, half: float) -> str:
    low, high = (math.expm1(mean + sign * half) for sign in (-1, 1))
    return f"{math.expm1(mean):+.1%} ({low:+.1%} to {high:+.1%})"


def _alone(losses: Losses, full: Losses, domain: str) -> str:
    return _cost({domain: losses[domain]}, full)


def _cost(losses: Losses, full: Losses) -> str:
    mean, _ = gap(losses, full)
    return f"{math.expm1(mean):+.1%}"


def _layers(row: Row, experts: int) -> str:
    """The fewest and the most layers that keep one expert; of merged experts nothing."""
    if not row["kept"]:
        return ""
    counts = [sum(expert in kept for kept in row["kept"]) for expert in range(experts)]
    return f"{min(counts)} to {max(counts)}"
