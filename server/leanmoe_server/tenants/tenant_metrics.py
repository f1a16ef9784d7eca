"""Prometheus series by tenant. A label is a name of the key file, or one of three words."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from leanmoe import metric_names as names
from leanmoe_server.exported import sums_several
from leanmoe_server.keys.keys import ANONYMOUS, UNKNOWN

KINDS = ("prompt", "generated")
KEY_MISSING, KEY_WRONG = "key_missing", "key_wrong"


def _counter(metric: names.Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


class TenantMetrics:
    """Requests, tokens and refusals of each tenant.

    Of several API processes that read one key file, one ``counts_files``.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, counts_files: bool = True
    ) -> None:
        self._counts_files = counts_files
        self._requests = _counter(names.TENANT_REQUESTS, registry)
        self._tokens = _counter(names.TENANT_TOKENS, registry)
        self._refused = _counter(names.TENANT_REFUSED, registry)
        running = names.TENANT_RUNNING
        self._running = Gauge(
            running.name,
            running.help,
            running.labels,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._broken = _counter(names.KEY_FILE_ERRORS, registry)
        self._named: set[str] = set()
        for reason in (KEY_MISSING, KEY_WRONG):
            self._refused.labels(UNKNOWN, reason)
        self._open(ANONYMOUS)

    def _open(self, name: str) -> None:
        self._requests.labels(name)
        self._running.labels(name)
        for kind in KINDS:
            self._tokens.labels(name, kind)

    def _close(self, name: str) -> None:
        if sums_several():  # what several processes counted together stays
            self._running.labels(name).set(0)
            return
        for series in (self._requests, self._tokens, self._refused, self._running):
            series.remove_by_labels({"tenant": name})

    def name_tenants(self, tenants: Iterable[str]) -> None:
        """Series of all ``tenants`` from zero, and none of those that are gone."""
        wanted = set(tenants)
        for name in wanted - self._named:
            self._open(name)
        for name in self._named - wanted:
            self._close(name)
        self._named = wanted

    def broken_file(self) -> None:
        """A changed key file could not be used."""
        if self._counts_files:
            self._broken.inc()

    def began(self, tenant: str, running: int) -> None:
        self._requests.labels(tenant).inc()
        self._running.labels(tenant).set(running)

    def ended(self, tenant: str, running: int) -> None:
        self._running.labels(tenant).set(running)

    def tokens(self, tenant: str, kind: str, tokens: int) -> None:
        self._tokens.labels(tenant, kind).inc(tokens)

    def refused(self, tenant: str, reason: str) -> None:
        self._refused.labels(tenant, reason).inc()
