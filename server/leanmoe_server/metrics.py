"""LeanMoE's Prometheus series; the only place that registers them.

Workers count from their own start; what is added here are differences, so the
series are ordinary counters. Under tensor parallelism every rank counts the same
tokens: the first rank that reports a layer speaks for it. Data-parallel engines count
different ones, which are added up.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from enum import StrEnum

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from leanmoe import metric_names as names
from leanmoe.messages import HandshakeReport, LayerCounts, SkipSnapshot
from leanmoe.metric_names import Metric
from leanmoe.skip_rule import SkipRule
from leanmoe_server.exported import sums_several

logger = logging.getLogger(__name__)


class RefusedFor(StrEnum):
    """Why a request was not taken: the label of a series each."""

    PLACES = "places"
    BODY = "body"
    MEMORY = "memory"
    LATE = "late"
    HEAD = "head"
    STOPPING = "stopping"
    NOT_READY = "not_ready"


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(
        metric.name,
        metric.help,
        metric.labels,
        registry=registry,
        multiprocess_mode="mostrecent",
    )


_COUNTED = {
    "routed": names.ROUTED_ASSIGNMENTS,
    "skipped": names.SKIPPED_ASSIGNMENTS,
    "substituted": names.SUBSTITUTED_ASSIGNMENTS,
    "skipped_weight": names.SKIPPED_WEIGHT,
    "steps": names.LAYER_STEPS,
    "distinct_experts": names.DISTINCT_EXPERTS,
    "nonfinite": names.NONFINITE_TOKENS,
}


class Metrics:
    """Every series of ``leanmoe.metric_names``, fed by handshake and snapshots."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters = {field: _counter(metric, registry) for field, metric in _COUNTED.items()}
        self._union_budget = _gauge(names.UNION_BUDGET, registry)
        self._level = _gauge(names.SKIP_LEVEL, registry)
        self._rule = _gauge(names.SKIP_RULE, registry)
        self._version = _gauge(names.POLICY_VERSION, registry)
        self._tokens_per_second = _gauge(names.TOKENS_PER_SECOND, registry)
        self._weight_bytes = _gauge(names.WEIGHT_BYTES, registry)
        self._resident_bytes = _gauge(names.RESIDENT_BYTES, registry)
        self._device_bytes = _gauge(names.DEVICE_BYTES, registry)
        self._complete = _gauge(names.HANDSHAKE_COMPLETE, registry)
        self._wrapped = _gauge(names.HANDSHAKE_LAYERS, registry)
        self._age = _gauge(names.SNAPSHOT_AGE, registry)
        self._age.set_function(self.snapshot_age)
        self._changes = _counter(names.POLICY_CHANGES, registry)
        self.audit_failures = _counter(names.AUDIT_FAILURES, registry)
        self._refused = _counter(names.REFUSED_REQUESTS, registry)
        for why in RefusedFor:
            self._refused.labels(why)
        self._governor_armed = _gauge(names.GOVERNOR_ARMED, registry)
        self._governor_level = _gauge(names.GOVERNOR_LEVEL, registry)
        self._governor_rung = _gauge(names.GOVERNOR_RUNG, registry)
        self._governor_pressure = _gauge(names.GOVERNOR_PRESSURE, registry)
        self.governor_moves = _counter(names.GOVERNOR_MOVES, registry)
        for direction in ("up", "down"):
            self.governor_moves.labels(direction)
        self.shadow_replays = _counter(names.SHADOW_REPLAYS, registry)
        self.shadow_tokens = _counter(names.SHADOW_TOKENS, registry)
        self._shadow_kld = _gauge(names.SHADOW_KLD, registry)
        self._shadow_top1 = _gauge(names.SHADOW_TOP1, registry)
        self.shadow_lower = _gauge(names.SHADOW_LOWER, registry)
        self.shadow_breach = _gauge(names.SHADOW_BREACH, registry)
        for outcome in ("replayed", "failed"):
            self.shadow_replays.labels(outcome)
        # Of the monotonic clock, which is the machine's: when the workers' counters were read.
        self.read_at: float | None = None
        self._holders: set[str] = set()
        # By data-parallel engine and layer.
        self._counted: dict[tuple[int, int], LayerCounts] = {}

    def snapshot_age(self) -> float:
        """Seconds since the last snapshot; infinite before the first."""
        return float("inf") if self.read_at is None else time.monotonic() - self.read_at

    def state_age(self) -> None:
        """Put the age where a scrape of several processes finds it, which asks no function."""
        if sums_several():
            self._age.set(self.snapshot_age())

    def start_from_zero(self) -> None:
        """Have series without a value yet: added up over processes, there would be no sample."""
        for gauge in (
            *(self._union_budget, self._level, self._version, self._complete),
            *(self._governor_armed, self._governor_level, self._governor_rung),
            *(self._governor_pressure, self.shadow_lower, self.shadow_breach),
        ):
            gauge.set(0)

    def observe_handshake(self, reports: Iterable[HandshakeReport], complete: bool) -> None:
        self._complete.set(complete)
        for report in reports:
            self._weight_bytes.labels(report.worker).set(report.weight_bytes)
            modes = Tally(layer.mode.value for layer in report.layers if layer.wrapped)
            for mode, layers in modes.items():
                self._wrapped.labels(report.worker, mode).set(layers)

    def observe_snapshots(self, snapshots: list[SkipSnapshot]) -> None:
        self.read_at = time.monotonic()
        for snapshot in reversed(snapshots):
            self._level.set(snapshot.level)
            for rule in SkipRule:
                self._rule.labels(rule).set(rule is snapshot.rule)
            self._version.set(snapshot.policy_version)
            self._union_budget.set(snapshot.union_budget)
            if snapshot.device_bytes is not None:
                self._device_bytes.labels(snapshot.worker).set(snapshot.device_bytes)
        first = {(s.engine, c.layer): c for s in reversed(snapshots) for c in s.layers}
        for (engine, layer), counts in sorted(first.items()):
            self._count(engine, layer, counts)

    def _count(self, engine: int, layer: int, counts: LayerCounts) -> None:
        nothing = LayerCounts(layer=layer, tokens=0, routed=0, skipped=0)
        before = self._counted.get((engine, layer), nothing)
        self._counted[engine, layer] = counts
        # A worker that began anew counts from zero again.
        if any(getattr(counts, field) < getattr(before, field) for field in _COUNTED):
            before = nothing
        for field, counter in self._counters.items():
            counter.labels(str(layer)).inc(getattr(counts, field) - getattr(before, field))
        if counts.nonfinite > before.nonfinite and not before.nonfinite:
            logger.error(
                "layer %d: the router gave weights that are no numbers, and such tokens keep all "
                "their experts; the checkpoint is damaged or overflows in this --dtype",
                layer,
            )

    def observe_refusal(self, why: RefusedFor) -> None:
        self._refused.labels(why).inc()

    def observe_change(self, cause: str, reached: bool) -> None:
        self._changes.labels(cause, "in_force" if reached else "failed").inc()

    def observe_governor(self, armed: bool, level: float, rung: int, pressure: float) -> None:
        self._governor_armed.set(armed)
        self._governor_level.set(level)
        self._governor_rung.set(rung)
        self._governor_pressure.set(pressure)

    def observe_shadow(self, pair: str, kld: float | None, top1: float | None) -> None:
        """``pair`` is served or exact, each beside exact; what was not measured has no sample."""
        if kld is not None and top1 is not None:
            self._shadow_kld.labels(pair).set(kld)
            self._shadow_top1.labels(pair).set(top1)

    def observe_memory(self, resident_bytes: Mapping[str, int]) -> None:
        # A process that ended holds nothing any more.
        sizes = {**dict.fromkeys(self._holders, 0), **resident_bytes}
        self._holders = set(sizes)
        for process, size in sizes.items():
            self._resident_bytes.labels(process).set(size)

    def observe_rates(self, tokens_per_second: Mapping[str, float]) -> None:
        for phase, rate in tokens_per_second.items():
            self._tokens_per_second.labels(phase).set(rate)
