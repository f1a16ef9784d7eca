"""Domains taken together: all of them, and those of one language, where their names say it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ALL = "all"
# Of the built-in texts; other names are of no language that is known here.
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "en": ("gen", "man", "kjv", "wn", "math"),
    "fr": ("fr",),
    "de": ("de",),
    "es": ("es",),
    "code": ("c", "py"),
}
_WHOLE_SUMS = ("kld", "top1_agreement")


def group_reports(domains: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures by group, of the figures by domain; none for a single domain.

    Perplexities and their ratios are geometric means in which domains weigh the same, KLD and top-1
    agreement arithmetic ones. Domains are independent of one another, so the widths of their
    intervals, in logarithms, add up as squares.
    """
    if len(domains) < 2:
        return {}
    groups = {ALL: list(domains)}
    for language, names in LANGUAGES.items():
        groups[language] = [name for name in domains if name in names]
    return {
        group: _report([domains[name] for name in names])
        for group, names in groups.items()
        if names
    }


def _report(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    perplexity = _joint((one["perplexity"], one["low"], one["high"]) for one in found)
    report: dict[str, Any] = {"domains": len(found), "perplexity": perplexity.pop("mean")}
    report["of_one_window"] = sum(one["low"] is None for one in found)
    report |= perplexity
    if "against" in found[0]:
        ratios = [one["against"]["ratio"] for one in found]
        report["ratio"] = _joint((one["mean"], one["low"], one["high"]) for one in ratios)
    for key in _WHOLE_SUMS:
        if key in found[0]:
            report[key] = math.fsum(one[key] for one in found) / len(found)
    return report


def _joint(ranges: Iterable[tuple[float, float | None, float | None]]) -> dict[str, Any]:
    """Geometric mean; without an interval where one part has none."""
    mean, halves, count = 0.0, [], 0
    for value, low, high in ranges:
        mean, count = mean + math.log(value), count + 1
        if low is not None and high is not None:
            halves.append(math.log(high / low) / 2.0)
    mean /= count
    if len(halves) < count:
        return {"mean": math.exp(mean), "low": None, "high": None}
    half = math.hypot(*halves) / count
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}
