"""The last minutes of a server, a point per reading of the counters, so that a page opens on them.

Points are differences of exported counters: nothing is asked of the workers here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from leanmoe import metric_names as names
from leanmoe_server.console.samples import Samples

KEPT = 120
# Shorter intervals say more about who reads than about the engine.
LEAST_SECONDS = 0.5
_TOKENS = {"prefill": "vllm:prompt_tokens_total", "decode": "vllm:generation_tokens_total"}
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_KV_CACHE = "vllm:kv_cache_usage_perc"
_PER_LAYER = {
    "routed": names.ROUTED_ASSIGNMENTS.name,
    "skipped": names.SKIPPED_ASSIGNMENTS.name,
    "steps": names.LAYER_STEPS.name,
    "distinct": names.DISTINCT_EXPERTS.name,
}
_NAMES = (
    *_TOKENS.values(),
    *_PER_LAYER.values(),
    *(_RUNNING, _WAITING, _KV_CACHE),
    *(names.SKIP_LEVEL.name, names.WEIGHT_BYTES.name),
    *(names.RESIDENT_BYTES.name, names.DEVICE_BYTES.name),
)
Counts = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Point:
    """One reading. Rates and shares cover the time since the point before.

    ``routed`` and ``skipped`` are assignments of all layers. ``layers`` has per layer the share of
    them skipped and the distinct experts per step, ``None`` where no token went through it.
    ``seconds`` is Unix time.
    """

    number: int
    seconds: float
    prefill_per_second: float
    decode_per_second: float
    running: float | None
    waiting: float | None
    kv_cache: float | None
    level: float | None
    resident_bytes: float
    device_bytes: float | None
    routed: float
    skipped: float
    layers: list[tuple[float | None, float | None]]


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole > 0 else None


class Recorder:
    """Keeps the last ``KEPT`` points, and the totals since the server started."""

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._number = 0
        self._at = clock()
        self._tokens = dict.fromkeys(_TOKENS, 0.0)
        self._before: Counts = {field: {} for field in _PER_LAYER}
        self._memory: dict[str, dict[str, float]] = {}

    def read(self) -> None:
        """Make a point of what is exported now, unless the last one is too young."""
        now = self._clock()
        elapsed = now - self._at
        if elapsed < LEAST_SECONDS:
            return
        samples = Samples.read(_NAMES, self._registry)
        tokens = {phase: samples.sum(name) or 0.0 for phase, name in _TOKENS.items()}
        counts = {field: samples.by(name, "layer") for field, name in _PER_LAYER.items()}
        self._memory = {
            "weights": samples.by(names.WEIGHT_BYTES.name, "worker"),
            "resident": samples.by(names.RESIDENT_BYTES.name, "process"),
            "device": samples.by(names.DEVICE_BYTES.name, "worker"),
        }
        self._points.append(self._point(samples, tokens, counts, elapsed))
        self._at, self._tokens, self._before = now, tokens, counts

    def _point(
        self, samples: Samples, tokens: dict[str, float], counts: Counts, elapsed: float
    ) -> Point:
        self._number += 1
        rates = {phase: (tokens[phase] - self._tokens[phase]) / elapsed for phase in tokens}
        routed, skipped, steps, distinct = (self._since(field, counts) for field in _PER_LAYER)
        return Point(
            number=self._number,
            seconds=round(time.time(), 1),
            prefill_per_second=round(max(0.0, rates["prefill"]), 1),
            decode_per_second=round(max(0.0, rates["decode"]), 1),
            running=samples.sum(_RUNNING),
            waiting=samples.sum(_WAITING),
            kv_cache=samples.largest(_KV_CACHE),
            level=samples.largest(names.SKIP_LEVEL.name),
            resident_bytes=sum(self._memory["resident"].values()),
            device_bytes=samples.sum(names.DEVICE_BYTES.name),
            routed=sum(routed.values()),
            skipped=sum(skipped.values()),
            layers=[
                (_share(skipped[one], routed[one]), _share(distinct[one], steps[one]))
                for one in _ordered(counts)
            ],
        )

    def _since(self, field: str, counts: Counts) -> dict[str, float]:
        before = self._before[field]
        return {one: counts[field].get(one, 0.0) - before.get(one, 0.0) for one in _ordered(counts)}

    def describe(self, after: int = 0) -> dict[str, Any]:
        """Points after number ``after``, totals of each layer, and bytes of memory by holder."""
        totals = [
            {"layer": int(one)} | {field: self._before[field].get(one, 0.0) for field in _PER_LAYER}
            for one in _ordered(self._before)
        ]
        points = [asdict(point) for point in self._points if point.number > after]
        return {"points": points, "layers": totals, "memory": self._memory}


def _ordered(counts: Counts) -> list[str]:
    return sorted(counts["routed"], key=int)
