"""What the server said of itself during a run, in a few figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanmoe import metric_names
from leanmoe_loadtest.reading.server_series import (
    ANSWER_TOKENS,
    PREEMPTIONS,
    PROMPT_TOKENS,
    Series,
    gauge,
    growth,
    server_series,
)
from leanmoe_loadtest.run import Scrape


def server_figures(scrapes: Sequence[Scrape]) -> dict[str, Any] | None:
    """Means, extremes and totals between first and last reading; ``None`` without readings."""
    if not scrapes:
        return None
    series = server_series(scrapes)
    return {
        "readings": len(scrapes),
        "skip_rate": _ratio(
            scrapes, metric_names.SKIPPED_ASSIGNMENTS.name, metric_names.ROUTED_ASSIGNMENTS.name
        ),
        "distinct_experts_per_step": _ratio(
            scrapes, metric_names.DISTINCT_EXPERTS.name, metric_names.LAYER_STEPS.name
        ),
        "skip_level": _extremes(series, "skip_level"),
        "waiting": _extremes(series, "waiting"),
        "running": _extremes(series, "running"),
        "kv_use": _extremes(series, "kv_use"),
        "resident_bytes": _extremes(series, "resident_bytes"),
        "device_bytes": _extremes(series, "device_bytes"),
        "answer_tokens": growth(gauge(scrapes, ANSWER_TOKENS)),
        "prompt_tokens": growth(gauge(scrapes, PROMPT_TOKENS)),
        "preemptions": growth(gauge(scrapes, PREEMPTIONS)),
        "level_changes": growth(gauge(scrapes, metric_names.POLICY_VERSION.name, max)),
    }


def _ratio(scrapes: Sequence[Scrape], part: str, whole: str) -> float | None:
    grown, of = growth(gauge(scrapes, part)), growth(gauge(scrapes, whole))
    return grown / of if grown is not None and of else None


def _extremes(series: Mapping[str, Series], name: str) -> dict[str, float] | None:
    if name not in series:
        return None
    values = np.asarray(series[name].values)
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}
