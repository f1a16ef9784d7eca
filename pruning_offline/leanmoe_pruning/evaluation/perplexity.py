"""Perplexity per domain, and the distance of one model from another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from leanmoe_pruning.data import DataSet
from leanmoe_pruning.evaluation.bounds import WindowMean
from leanmoe_pruning.evaluation.comparison import Other, WindowSums, measure_window, perplexity_of
from leanmoe_pruning.evaluation.levels import LevelPass, run_levels
from leanmoe_pruning.forward.passes import Hidden
from leanmoe_pruning.forward.skipping import Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import Tick


@dataclass(frozen=True)
class Against:
    """The model compared with and its final hidden states, one tensor ``[N, T, D]`` per source."""

    stream: DecoderStream
    hidden: Hidden


def forward(stream: DecoderStream, data: DataSet, skipping: Skipping, tick: Tick) -> LevelPass:
    """Final activations of ``data``, skipped by one setting."""

    def thresholds_of(layer: int) -> list[float]:
        tick()
        return [skipping.thresholds.get(layer, 0.0)]

    return run_levels(stream, data.ids, thresholds_of, 1, skipping.factors.get)


def domain_sums(
    run: LevelPass, against: Against | None, data: DataSet, tick: Tick
) -> dict[str, tuple[WindowSums, WindowSums | None]]:
    """Window sums per source; with ``against`` also KL(against || run), agreement, its own sums."""
    found = {}
    for index, source in enumerate(data.sources):
        sums, theirs = WindowSums(), WindowSums() if against else None
        for window, ids_T in enumerate(source.ids_NT):
            other = None
            if against is not None and theirs is not None:
                other = Other(against.stream, against.hidden[index][window], theirs)
            measure_window(run.stream, run.hidden[index][window], ids_T, sums, other)
            tick()
        found[source.name] = sums, theirs
    return found


def domain_report(sums: WindowSums, theirs: WindowSums | None = None) -> dict[str, Any]:
    """One domain's figures; the interval is 95 % over windows, absent for a single window.

    ``theirs`` are the same windows of the model compared with.
    """
    report = _perplexity(sums)
    report["tokens"] = sum(sums.tokens)
    if theirs is not None:
        report["against"] = {**_perplexity(theirs), "ratio": _ratio(sums, theirs)}
    if sums.kld:
        kld = sums.mean_kld()
        upper = kld.upper() if kld.standard_error is not None else None
        report |= {
            "kld": kld.mean,
            "kld_upper": upper,
            "top1_agreement": sums.top1_agreement(),
            "top1_lower": _lower(sums),
        }
    return report


def _lower(sums: WindowSums) -> float | None:
    """One-sided 95 % bound of the agreement, over windows as the KLD's."""
    mean = WindowMean.of([float(count) for count in sums.agreed], sums.tokens)
    return None if mean.standard_error is None else max(0.0, 2.0 * mean.mean - mean.upper())


def _perplexity(sums: WindowSums) -> dict[str, Any]:
    return {"perplexity": sums.perplexity(), **_range(sums.mean_log_loss())}


def _ratio(sums: WindowSums, theirs: WindowSums) -> dict[str, Any]:
    """Perplexity over the other's, paired window by window."""
    gaps = [mine - other for mine, other in zip(sums.log_loss, theirs.log_loss, strict=True)]
    mean = WindowMean.of(gaps, [count - 1 for count in sums.tokens])
    return {"mean": perplexity_of(mean.mean), **_range(mean)}


def _range(mean: WindowMean) -> dict[str, Any]:
    if mean.standard_error is None:
        return {"low": None, "high": None}
    low, high = mean.interval()
    return {"low": math.exp(low), "high": perplexity_of(high)}
