"""From vLLM's own Prometheus series and the workers' counters to observations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.samples import Sample

from leanmoe.messages import SkipSnapshot
from leanmoe_server.exported import exported, sums_several
from leanmoe_server.governor.observation import Observation
from leanmoe_server.governor.traffic import Traffic

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
TTFT, ITL = "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"
STEP_TOKENS = "vllm:iteration_tokens_total"
_GAUGES = (RUNNING, WAITING, KV_USAGE)
_HISTOGRAMS = (TTFT, ITL, STEP_TOKENS)


@dataclass(frozen=True)
class _Totals:
    """Sums since the start; ``steps`` and ``distinct`` as the workers count them, per layer."""

    ttft_sum: float = 0.0
    ttft_count: float = 0.0
    itl_sum: float = 0.0
    itl_count: float = 0.0
    tokens: float = 0.0
    steps: float = 0.0
    layer_steps: float = 0.0
    distinct: float = 0.0
    routed: float = 0.0
    skipped: float = 0.0

    def __sub__(self, other: _Totals) -> _Totals:
        names = [one.name for one in fields(self)]
        return _Totals(*(getattr(self, name) - getattr(other, name) for name in names))

    @property
    def counts_on(self) -> bool:
        """False for the difference to a counter that began anew."""
        return all(getattr(self, one.name) >= 0 for one in fields(self))


class Readings:
    """Remembers the last look; an observation covers the time since then.

    ``traffic`` is asked once the workers said what they hold. ``problem`` says why there is
    nothing to see, where vLLM exports none of its series.
    """

    def __init__(
        self,
        traffic: Callable[[], Traffic | None] = lambda: None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._registry = registry
        self._traffic = traffic
        self._last = _Totals()
        self._was_running = False
        self.problem: str | None = None

    def observe(self, seconds: float, snapshots: Sequence[SkipSnapshot]) -> Observation:
        """What happened since the last call, ``seconds`` ago."""
        found = self._samples()
        self.problem = (
            None if (RUNNING, "") in found else "vLLM exports no metrics (--disable-log-stats?)"
        )
        now = _totals(found, snapshots)
        passed, self._last = now - self._last, now
        running = int(found.get((RUNNING, ""), 0.0))
        # Where a part of the interval was idle, steps took less than the interval says.
        busy, self._was_running = running > 0 and self._was_running, running > 0
        load = Observation(
            seconds=seconds,
            running=running,
            waiting=int(found.get((WAITING, ""), 0.0)),
            kv_usage=found.get((KV_USAGE, ""), 0.0),
        )
        return self._with_work(load, passed, busy) if passed.counts_on else load

    def _with_work(self, load: Observation, passed: _Totals, busy: bool) -> Observation:
        steps = int(passed.steps) if busy else 0
        distinct = _mean(passed.distinct, passed.layer_steps)
        share, traffic = None, self._traffic()
        if traffic is not None and distinct is not None and steps:
            share = traffic.share(distinct, load.seconds / steps)
        return replace(
            load,
            first_tokens=int(passed.ttft_count),
            ttft_seconds=_mean(passed.ttft_sum, passed.ttft_count),
            itl_seconds=_mean(passed.itl_sum, passed.itl_count),
            steps=steps,
            tokens=int(passed.tokens),
            skipped_share=_mean(passed.skipped, passed.routed),
            distinct_experts=distinct,
            bandwidth_share=share,
        )

    def _samples(self) -> dict[tuple[str, str], float]:
        """Sums over engines by (name, what of a histogram); the fullest engine's KV usage."""
        wanted = [*_GAUGES, *(f"{one}{end}" for one in _HISTOGRAMS for end in ("_sum", "_count"))]
        families = exported(self._registry).restricted_registry(wanted).collect()
        found: dict[tuple[str, str], float] = {}
        for sample in (sample for family in families for sample in family.samples):
            key = _key(sample, wanted)
            if key is None:
                continue
            before = found.get(key, 0.0)
            fullest = key[0] == KV_USAGE
            found[key] = max(before, sample.value) if fullest else before + sample.value
        return found


def _key(sample: Sample, wanted: Iterable[str]) -> tuple[str, str] | None:
    if sample.name not in wanted:
        return None
    for end in ("_sum", "_count"):
        if sample.name.endswith(end):
            return sample.name.removesuffix(end), end
    return sample.name, ""


def _totals(found: dict[tuple[str, str], float], snapshots: Sequence[SkipSnapshot]) -> _Totals:
    counts = [layer for snapshot in snapshots[:1] for layer in snapshot.layers]
    layer_steps = float(sum(one.steps for one in counts))
    steps = found.get((STEP_TOKENS, "_count"), 0.0)
    if sums_several() and counts:  # each API process counts the steps that had tokens for it
        steps = layer_steps / len(counts)
    return _Totals(
        ttft_sum=found.get((TTFT, "_sum"), 0.0),
        ttft_count=found.get((TTFT, "_count"), 0.0),
        itl_sum=found.get((ITL, "_sum"), 0.0),
        itl_count=found.get((ITL, "_count"), 0.0),
        tokens=found.get((STEP_TOKENS, "_sum"), 0.0),
        steps=steps,
        layer_steps=layer_steps,
        distinct=float(sum(one.distinct_experts for one in counts)),
        routed=float(sum(one.routed for one in counts)),
        skipped=float(sum(one.skipped for one in counts)),
    )


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
