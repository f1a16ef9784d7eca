"""Everything a run says, as one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leanmoe_loadtest.reading.level_name import level_name
from leanmoe_loadtest.reading.notes import notes
from leanmoe_loadtest.reading.quality import Quality, quality_figures
from leanmoe_loadtest.reading.server import server_figures
from leanmoe_loadtest.reading.slo import Slo, goodput
from leanmoe_loadtest.reading.sweep import sweep
from leanmoe_loadtest.reading.timeline import last_seen, timeline
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import Run
from leanmoe_loadtest.stats import distribution_ms, present, span_seconds, summarise

_SHOWN = (
    "url",
    "model",
    "endpoint",
    "loop",
    "arrivals",
    "users",
    "duration_seconds",
    "prompts",
    "prompt_count",
    "levels",
    "seed",
    "settings",
    "workers",
    "versions",
    "started",
    "ended",
    "concurrency",
    "partial",
)

_AT_ONCE_SECONDS = 2e-4


def summarise_run(
    run: Run, slo: Slo | None = None, quality: Quality | None = None
) -> dict[str, Any]:
    """Figures overall, by endpoint and by level, beside the server's own and the quality."""
    figures = _Figures(run, slo)
    info = run.info.model_dump(mode="json")
    summary = {
        **{name: info[name] for name in _SHOWN},
        **figures.of(run.requests),
        "late_ms": distribution_ms(present(r.late_seconds for r in run.requests)),
        "pieces_together": _together(run.requests),
        "by_endpoint": figures.by(lambda record: record.endpoint),
        "by_level": figures.by(lambda record: level_name(record.level)),
        "sweep": sweep(run.info, run.requests, figures.of),
        "server": server_figures(run.metrics),
        "timeline": timeline(run),
        "quality": None if quality is None else quality_figures(quality, run.info.seed),
    }
    return {**summary, "notes": notes(summary)}


class _Figures:
    """Figures of parts of a run; rates are per second of the whole."""

    def __init__(self, run: Run, slo: Slo | None) -> None:
        self._run, self._slo = run, slo
        self._span = span_seconds(run.requests)
        self._until = last_seen(run.requests) if run.requests else 0.0

    def of(self, records: Sequence[RequestRecord], seconds: float | None = None) -> dict[str, Any]:
        """Of records that took so many ``seconds``, the whole run's where none are given."""
        span = self._span if seconds is None else seconds
        met = None if self._slo is None else goodput(records, self._slo, self._until, span)
        return {**summarise(records, span), "goodput": met}

    def by(self, key: Callable[[RequestRecord], str]) -> Mapping[str, dict[str, Any]]:
        groups: dict[str, list[RequestRecord]] = {}
        for record in self._run.requests:
            groups.setdefault(key(record), []).append(record)
        return {
            name: {**self.of(groups[name]), "applied_levels": _applied(groups[name])}
            for name in sorted(groups)
        }


def _together(records: Sequence[RequestRecord]) -> float | None:
    """Share of gaps too short for a token: the text of several steps arrived at once."""
    gaps = [gap for record in records if record.completed for gap in record.itl_seconds]
    return sum(gap < _AT_ONCE_SECONDS for gap in gaps) / len(gaps) if gaps else None


def _applied(records: Sequence[RequestRecord]) -> list[float]:
    return sorted({r.applied_level for r in records if r.applied_level is not None})
