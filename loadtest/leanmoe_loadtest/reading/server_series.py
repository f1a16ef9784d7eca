"""The server's own figures out of a run's scrapes, as series over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from leanmoe import metric_names
from leanmoe_loadtest.run import Scrape

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PROMPT_TOKENS, ANSWER_TOKENS = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
PREEMPTIONS = "vllm:num_preemptions_total"
Reduce = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Series:
    """Values at Unix times, in order."""

    times: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.times)


def _name(key: str) -> str:
    return key.partition("{")[0]


def gauge(scrapes: Sequence[Scrape], name: str, reduce: Reduce = sum) -> Series:
    """A gauge over all its labels, where the server has it."""
    found = [(scrape.time, _samples(scrape, name)) for scrape in scrapes]
    kept = [(time, reduce(values)) for time, values in found if values]
    return Series([time for time, _ in kept], [value for _, value in kept])


def _samples(scrape: Scrape, name: str) -> list[float]:
    return [value for key, value in scrape.samples.items() if _name(key) == name]


def rate(counter: Series) -> Series:
    """Growth per second between readings, at the later one; a restart of the server is left out."""
    pairs = list(pairwise(zip(counter.times, counter.values, strict=True)))
    kept = [
        (later, (end - start) / (later - earlier))
        for (earlier, start), (later, end) in pairs
        if end >= start and later > earlier
    ]
    return Series([time for time, _ in kept], [value for _, value in kept])


def growth(counter: Series) -> float | None:
    """By how much a counter grew, restarts of the server left out; ``None`` below two readings."""
    if len(counter.values) < 2:
        return None
    return sum(max(0.0, after - before) for before, after in pairwise(counter.values))


def share(part: Series, whole: Series) -> Series:
    """What share of ``whole``'s growth was ``part``'s, wherever ``whole`` grew."""
    values = dict(zip(whole.times, whole.values, strict=True))
    both = [(t, v, values[t]) for t, v in zip(part.times, part.values, strict=True) if t in values]
    kept = [
        (later, (part_end - part_start) / (end - start))
        for (_, part_start, start), (later, part_end, end) in pairwise(both)
        if end > start and part_end >= part_start
    ]
    return Series([time for time, _ in kept], [value for _, value in kept])


def server_series(scrapes: Sequence[Scrape]) -> dict[str, Series]:
    """Everything a report draws, by name; what the server does not export is left out."""
    routed = gauge(scrapes, metric_names.ROUTED_ASSIGNMENTS.name)
    skipped = gauge(scrapes, metric_names.SKIPPED_ASSIGNMENTS.name)
    kv_use = next((found for name in KV_USE if (found := gauge(scrapes, name, max))), None)
    series = {
        "skip_rate": share(skipped, routed),
        "skip_level": gauge(scrapes, metric_names.SKIP_LEVEL.name, max),
        "waiting": gauge(scrapes, WAITING),
        "running": gauge(scrapes, RUNNING),
        "kv_use": kv_use,
        "resident_bytes": gauge(scrapes, metric_names.RESIDENT_BYTES.name),
        "device_bytes": gauge(scrapes, metric_names.DEVICE_BYTES.name),
        "answer_tokens_per_second": rate(gauge(scrapes, ANSWER_TOKENS)),
        "prompt_tokens_per_second": rate(gauge(scrapes, PROMPT_TOKENS)),
    }
    return {name: found for name, found in series.items() if found}
