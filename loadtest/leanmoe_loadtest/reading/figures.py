"""The figures a check can name, and where each stands in a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanmoe import metric_names
from leanmoe_loadtest.reading.server_series import KV_USE, PREEMPTIONS, WAITING
from leanmoe_loadtest.stats import PERCENTILES

Summary = Mapping[str, Any]
_POINTS = ("mean", *(f"p{p}" for p in PERCENTILES), "max")
_LATENCIES = ("ttft", "itl", "tpot", "e2e")


@dataclass(frozen=True)
class Figure:
    """``kind`` is its unit (``conditions.UNITS``), ``needs`` what it cannot be measured without."""

    kind: str
    value: Callable[[Summary], float | None]
    needs: str | None = None
    grouped: bool = True  # also measured by endpoint and by level
    series: Sequence[str] = ()  # of which the server must export one


def _at(*path: str, scale: float = 1.0) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        found: Any = summary
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else scale * float(found)

    return value


def _worst_level(name: str) -> Callable[[Summary], float | None]:
    """Over the levels of the mix; over the noise where there are none."""

    def value(summary: Summary) -> float | None:
        quality = summary["quality"] or {}
        rows = [*(quality.get("levels") or {}).values()] or [quality.get("noise") or {}]
        found = [row.get(name) for row in rows]
        return None if any(one is None for one in found) else min(found)

    return value


def _latencies() -> dict[str, Figure]:
    return {
        f"{name}_{point}": Figure("time", _at(f"{name}_ms", point, scale=1e-3))
        for name in _LATENCIES
        for point in _POINTS
    }


def _server(kind: str, series: str | Sequence[str], *path: str) -> Figure:
    names = (series,) if isinstance(series, str) else series
    return Figure(kind, _at("server", *path), grouped=False, series=names)


FIGURES: Mapping[str, Figure] = {
    **_latencies(),
    **{
        f"late_{point}": Figure("time", _at("late_ms", point, scale=1e-3), "open", grouped=False)
        for point in _POINTS
    },
    "goodput": Figure("share", _at("goodput", "share"), needs="slo"),
    "goodput_per_second": Figure("number", _at("goodput", "requests_per_second"), needs="slo"),
    "error_rate": Figure("share", _at("error_rate")),
    "completed": Figure("number", _at("requests", "completed")),
    "failed": Figure("number", _at("requests", "failed")),
    "unfinished": Figure("number", _at("requests", "unfinished")),
    "requests_per_second": Figure("number", _at("requests_per_second")),
    "output_tokens_per_second": Figure("number", _at("output_tokens_per_second")),
    "knee_rate": Figure("number", _at("sweep", "knee", "rate"), needs="steps", grouped=False),
    "skip_rate": _server("share", metric_names.ROUTED_ASSIGNMENTS.name, "skip_rate"),
    "skip_level": _server("share", metric_names.SKIP_LEVEL.name, "skip_level", "max"),
    "waiting_max": _server("number", WAITING, "waiting", "max"),
    "kv_use_max": _server("share", KV_USE, "kv_use", "max"),
    "preemptions": _server("number", PREEMPTIONS, "preemptions"),
    "resident_max": _server("memory", metric_names.RESIDENT_BYTES.name, "resident_bytes", "max"),
    "device_max": _server("memory", metric_names.DEVICE_BYTES.name, "device_bytes", "max"),
    "quality_exact_match": Figure("share", _worst_level("exact_match"), "quality", grouped=False),
    "quality_agreement": Figure("share", _worst_level("agreement"), "quality", grouped=False),
}
KINDS: Mapping[str, str] = {name: figure.kind for name, figure in FIGURES.items()}
