"""Perplexity per domain, and the distance of one model from another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leanmoe_pruning.data import DataSet
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.quality.comparison import WindowSums, measure_window, perplexity_of
from leanmoe_pruning.quality.levels import LevelPass, run_levels

Layers = Mapping[int, float]


def forward(stream: DecoderStream, data: DataSet, betas: Layers, tick: Tick) -> LevelPass:
    """Final activations of ``data`` with one beta per layer."""

    def betas_of(layer: int) -> list[float]:
        tick()
        return [betas[layer]]

    return run_levels(stream, data.ids, betas_of, 1)


def domain_sums(
    run: LevelPass, against: LevelPass | None, data: DataSet, tick: Tick
) -> dict[str, WindowSums]:
    """Window sums per source; with ``against`` also KL(against || run) and agreement."""
    found: dict[str, WindowSums] = {}
    for index, source in enumerate(data.sources):
        sums = found.setdefault(source.name, WindowSums())
        for window, ids_T in enumerate(source.ids_NT):
            other = (against.stream, against.hidden[index][window]) if against else None
            measure_window(run.stream, run.hidden[index][window], ids_T, sums, other)
            tick()
    return found


def domain_report(sums: WindowSums) -> dict[str, Any]:
    """One domain's figures; the interval is 95 % over windows, absent for a single window."""
    loss = sums.mean_log_loss()
    report: dict[str, Any] = {"perplexity": sums.perplexity(), "low": None, "high": None}
    if loss.standard_error is not None:
        low, high = loss.interval()
        report |= {"low": math.exp(low), "high": perplexity_of(high)}
    report["tokens"] = sum(sums.tokens)
    if sums.kld:
        kld = sums.mean_kld()
        upper = kld.upper() if kld.standard_error is not None else None
        report |= {
            "kld": kld.mean,
            "kld_upper": upper,
            "top1_agreement": sums.top1_agreement(),
        }
    return report
