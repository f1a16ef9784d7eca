"""The comparison as a table: what each pattern costs beside the same share without groups.

Domains weigh equally. Differences are taken window by window, and the interval of a mean over
domains adds up what the windows of each domain say of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from leanmoe_bench.patterns.pattern_runs import SCORED, UNSTRUCTURED
from leanmoe_pruning.evaluation.bounds import WindowMean

Row = dict[str, Any]
Losses = dict[str, list[float]]
_HEAD = (
    "| kept | pattern | perplexity | log loss over unstructured's | seconds |\n"
    "|---|---|---|---|---|"
)


def gap(mine: Losses, other: Losses) -> tuple[float, float]:
    """Mean log loss more than the other's, nats per token, and half its 95 % interval."""
    means = []
    for name, windows in mine.items():
        gaps = [one - two for one, two in zip(windows, other[name], strict=True)]
        means.append(WindowMean.of(gaps, [1] * len(gaps)))
    halves = [mean.interval()[1] - mean.mean for mean in means]
    return math.fsum(one.mean for one in means) / len(means), math.hypot(*halves) / len(means)


def over_unstructured(row: Row, rows: Sequence[Row]) -> tuple[float, float] | None:
    """What a row loses against the full model over what the same share without groups loses.

    With half its 95 % interval, of the paired difference. Trained rows are held against the
    trained one; ``None`` where that was not measured.
    """
    full = rows[0]["losses"]
    for other in rows[1:]:
        alike = all(row[key] == other[key] for key in ("kept", "trained"))
        alike = alike and _method(row) == _method(other)
        if other["pattern"] == UNSTRUCTURED and alike:
            lost, _ = gap(other["losses"], full)
            more, half = gap(row["losses"], other["losses"])
            return 1 + more / lost, half / lost
    return None


def table(rows: Sequence[Row]) -> str:
    """Markdown, one line a row; the full model's comes first among ``rows``."""
    return "\n".join([_HEAD, *(_line(row, rows) for row in rows[1:])]) + "\n"


def _line(row: Row, rows: Sequence[Row]) -> str:
    lost, half = gap(row["losses"], rows[0]["losses"])
    ends = (math.expm1(lost + sign * half) for sign in (-1, 1))
    cost = f"{math.expm1(lost):+.1%} ({' to '.join(f'{end:+.1%}' for end in ends)})"
    beside = "1" if row["pattern"] == UNSTRUCTURED else _beside(row, rows)
    cells = (f"{row['kept']} %", _name(row), cost, beside, f"{row['seconds']:.0f}")
    return f"| {' | '.join(cells)} |"


def _beside(row: Row, rows: Sequence[Row]) -> str:
    found = over_unstructured(row, rows)
    if found is None:
        return "not measured"
    ratio, half = found
    return f"{ratio:.3f} ({ratio - half:.3f} to {ratio + half:.3f})"


def _name(row: Row) -> str:
    own = [word for word, key in (("permuted", "permuted"), ("distilled", "trained")) if row[key]]
    if _method(row) != SCORED:
        own.append(_method(row))
    return ", ".join((row["pattern"], *own))


def _method(row: Row) -> str:
    # Rows of a time when there was one method do not name it.
    return str(row.get("method", SCORED))
