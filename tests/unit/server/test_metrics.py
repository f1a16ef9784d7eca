"""Counters from snapshots: differences, restarts, ranks that count the same tokens."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from leanmoe import metric_names
from leanmoe.messages import LayerCounts, SkipSnapshot
from leanmoe_server.metrics import Metrics
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from leanmoe_server.token_rates import TokenRates

ROUTED, SKIPPED = metric_names.ROUTED_ASSIGNMENTS.name, metric_names.SKIPPED_ASSIGNMENTS.name


def snapshot(worker: str, counts: dict[int, tuple[int, int]]) -> SkipSnapshot:
    return SkipSnapshot(
        worker=worker,
        pid=1,
        policy_version=3,
        level=0.5,
        layers=[
            LayerCounts(layer=layer, tokens=routed // 2, routed=routed, skipped=skipped)
            for layer, (routed, skipped) in counts.items()
        ],
        resident_bytes=1,
    )


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def count(registry: CollectorRegistry, name: str, layer: int) -> float | None:
    return registry.get_sample_value(name, {"layer": str(layer)})


def test_every_name_is_registered_once(registry, metrics) -> None:
    TenantMetrics(registry)
    text = generate_latest(registry).decode()
    for metric in metric_names.ALL:
        assert text.count(f"# TYPE {metric.name} ") == 1, metric.name


def test_counters_add_differences(registry, metrics) -> None:
    metrics.observe_snapshots([snapshot("rank0", {0: (100, 30)})])
    metrics.observe_snapshots([snapshot("rank0", {0: (160, 50)})])
    assert (count(registry, ROUTED, 0), count(registry, SKIPPED, 0)) == (160, 50)


def test_a_restarted_worker_counts_on(registry, metrics) -> None:
    metrics.observe_snapshots([snapshot("rank0", {0: (100, 30)})])
    metrics.observe_snapshots([snapshot("rank0", {0: (10, 2)})])
    assert (count(registry, ROUTED, 0), count(registry, SKIPPED, 0)) == (110, 32)


def test_tensor_ranks_count_once_and_pipeline_ranks_each(registry, metrics) -> None:
    tensor = [snapshot("rank0", {0: (8, 2)}), snapshot("rank1", {0: (8, 2)})]
    metrics.observe_snapshots([*tensor, snapshot("rank2", {1: (8, 4)})])
    assert (count(registry, ROUTED, 0), count(registry, SKIPPED, 0)) == (8, 2)
    assert (count(registry, ROUTED, 1), count(registry, SKIPPED, 1)) == (8, 4)


def test_age_is_infinite_before_the_first_snapshot(registry, metrics) -> None:
    name = metric_names.SNAPSHOT_AGE.name
    assert registry.get_sample_value(name) == float("inf")
    metrics.observe_snapshots([snapshot("rank0", {})])
    assert registry.get_sample_value(name) < 60


def test_rates_are_differences_over_time(registry, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("leanmoe_server.token_rates.time.monotonic", lambda: now[0])
    prompt = Counter("vllm:prompt_tokens", "p", ["engine"], registry=registry)
    generated = Counter("vllm:generation_tokens", "g", ["engine"], registry=registry)
    rates = TokenRates(registry)
    prompt.labels("0").inc(100)
    generated.labels("0").inc(30)
    generated.labels("1").inc(10)
    now[0] += 0.1
    assert rates.read() == {}
    now[0] += 1.9
    assert rates.read() == {"prefill": 50.0, "decode": 20.0}
    now[0] += 2.0
    assert rates.read() == {"prefill": 0.0, "decode": 0.0}
