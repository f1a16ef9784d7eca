"""Rows of the before/after tables: what was measured, as text. What was not is an empty cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from leanmoe.stats import wilson
from leanmoe_pruning.amounts import show_share
from leanmoe_pruning.report.evaluations import (
    Accuracy,
    DomainFigures,
    Evaluation,
    TaskFigures,
)


@dataclass(frozen=True)
class Row:
    """One figure of this model, of the one before and the change, each with its interval."""

    name: str
    before: str
    after: str
    change: str
    clear: bool = False  # whether the change's interval leaves out "no change"


@dataclass(frozen=True)
class Comparison:
    """One evaluation as a table."""

    before: str | None
    skip_level: float
    rows: list[Row]
    distances: list[tuple[str, str, str, str]]  # domain, KLD, its bound, same top token


def comparison(found: Evaluation, source_digest: str | None, source_name: str | None) -> Comparison:
    """The table of one evaluation; the other model is the source only where its weights are."""
    before = found.against
    if before is not None and found.against_weights_digest == source_digest:
        before = f"{source_name} (the source)"
    rows = [_domain_row(name, figures) for name, figures in found.domains.items()]
    rows += [row for name, figures in found.tasks.items() for row in _task_rows(name, figures)]
    distances = [
        (
            name,
            f"{one.kld:.5f}",
            "" if one.kld_upper is None else f"{one.kld_upper:.5f}",
            "" if one.top1_agreement is None else show_share(one.top1_agreement),
        )
        for name, one in found.domains.items()
        if one.kld is not None
    ]
    return Comparison(before, found.skip_level, rows, distances)


def joined(tables: Iterable[Comparison]) -> list[Comparison]:
    """Tables with the same other model and skip level as one."""
    found: dict[tuple[str | None, float], Comparison] = {}
    for table in tables:
        key = table.before, table.skip_level
        if key in found:
            table = replace(
                found[key],
                rows=[*found[key].rows, *table.rows],
                distances=[*found[key].distances, *table.distances],
            )
        found[key] = table
    return list(found.values())


def _span(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _domain_row(name: str, one: DomainFigures) -> Row:
    label = f"perplexity, {name}, {one.tokens} tokens"
    after = f"{one.perplexity:.3f}{_span(one.low, one.high, '.3f')}"
    other = one.against
    if other is None:
        return Row(label, "", after, "")
    ratio = other.ratio
    return Row(
        label,
        f"{other.perplexity:.3f}{_span(other.low, other.high, '.3f')}",
        after,
        f"times {ratio.mean:.3f}{_span(ratio.low, ratio.high, '.3f')}",
        _leaves_out(ratio.low, ratio.high, 1.0),
    )


def _leaves_out(low: float | None, high: float | None, same: float) -> bool:
    return low is not None and high is not None and not low <= same <= high


def _task_rows(name: str, one: TaskFigures) -> Iterator[Row]:
    chance = "" if one.chance is None else f", chance {one.chance:.0%}"
    if one.accuracy is not None and one.low is not None and one.high is not None:
        share = Accuracy(accuracy=one.accuracy, low=one.low, high=one.high, against=one.against)
        yield _accuracy_row(f"accuracy, {name}, {one.items} items{chance}", share, one.items)
    if one.per_byte is not None:
        yield _accuracy_row(f"accuracy per byte, {name}", one.per_byte, one.items)
    for metric, value in one.metrics.items():
        other = one.against_metrics.get(metric)
        before, change = ("", "") if other is None else (f"{other:.4f}", f"{value - other:+.4f}")
        yield Row(f"{metric}, {name}, {one.items} items", before, f"{value:.4f}", change)


def _accuracy_row(label: str, one: Accuracy, items: int) -> Row:
    after = f"{one.accuracy:.1%}{_span(one.low, one.high, '.1%')}"
    other = one.against
    if other is None:
        return Row(label, "", after, "")
    low, high = wilson(round(other.accuracy * items), items)
    return Row(
        label,
        f"{other.accuracy:.1%}{_span(low, high, '.1%')}",
        after,
        f"{100 * other.difference:+.1f} points{_span(100 * other.low, 100 * other.high, '+.1f')}",
        _leaves_out(other.low, other.high, 0.0),
    )
