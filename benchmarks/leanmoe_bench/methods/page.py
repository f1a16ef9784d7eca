"""The comparison as a page: ``docs/results.md``, every figure out of the JSON beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from leanmoe_bench.methods.findings import change, findings, joint, ratios

_HEAD = "| method | calibrated on | {columns} | all | KLD | top-1 same | {tasks} | seconds, CPU |"


def page(rows: Sequence[dict[str, Any]], intro: str, domain: str) -> str:
    """Markdown: the full model, what was expected and found, one table per budget.

    ``domain`` is the one that some rows were calibrated on.
    """
    full, cuts = rows[0], rows[1:]
    domains, tasks = list(full["eval"]["domains"]), list(full["eval"]["tasks"])
    parts = [intro.rstrip(), "", *_full_table(full, domains, tasks)]
    found = [f"- {one}" for one in findings(cuts, domain)]
    parts += ["", "## Expected and found", "", *found] if found else []
    for budget in dict.fromkeys(row["budget"] for row in cuts):
        parts += ["", f"## {budget.capitalize()}", "", *_header(domains, tasks)]
        parts += [_line(row, domains, tasks) for row in cuts if row["budget"] == budget]
    return "\n".join(parts) + "\n"


def _full_table(full: dict[str, Any], domains: Sequence[str], tasks: Sequence[str]) -> list[str]:
    found = full["eval"]
    lines = ["| the full model | figure | 95 % interval |", "|---|---|---|"]
    for name in domains:
        one = found["domains"][name]
        interval = f"{one['low']:.2f} to {one['high']:.2f}"
        lines.append(f"| perplexity, {name} | {one['perplexity']:.2f} | {interval} |")
    for name in tasks:
        one = found["tasks"][name]
        interval = f"{one['low']:.0%} to {one['high']:.0%}"
        lines.append(
            f"| accuracy, {name} ({one['items']} items) | {one['accuracy']:.1%} | {interval} |"
        )
    return lines


def _header(domains: Sequence[str], tasks: Sequence[str]) -> list[str]:
    head = _HEAD.format(columns=" | ".join(domains), tasks=" | ".join(tasks))
    return [head, "|" + "---|" * head.count(" | ") + "---|"]


def _line(row: dict[str, Any], domains: Sequence[str], tasks: Sequence[str]) -> str:
    found = row["eval"]
    changes = ratios(row)
    cells = [_method(row), row["calibration"], *map(change, changes)]
    tokens = [found["domains"][name]["tokens"] for name in domains]
    kld = _weighted(found, domains, tokens, "kld")
    same = _weighted(found, domains, tokens, "top1_agreement")
    cells += [f"**{change(joint(changes))}**", f"{kld:.3f}", f"{same:.0%}"]
    cells += [_accuracy(found["tasks"][name]) for name in tasks]
    cells.append(f"{row['seconds']:.0f}, {row['cpu_seconds']:.0f}")
    return "| " + " | ".join(cells) + " |"


def _method(row: dict[str, Any]) -> str:
    return f"{row['method']}, seed {row['seed']}" if row["method"] == "random" else row["method"]


def _weighted(
    found: dict[str, Any], domains: Sequence[str], tokens: Sequence[int], key: str
) -> float:
    sums = (
        found["domains"][name][key] * count for name, count in zip(domains, tokens, strict=True)
    )
    return math.fsum(sums) / sum(tokens)


def _accuracy(task: dict[str, Any]) -> str:
    other = task["against"]
    return f"{task['accuracy']:.0%} ({other['low']:+.0%} to {other['high']:+.0%})"
