"""The series that a scrape would see: of this process, or of all API processes together."""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

_SEVERAL = "PROMETHEUS_MULTIPROC_DIR"  # set by vLLM where it starts several


def sums_several() -> bool:
    """True where series are those of several processes, added up."""
    return _SEVERAL in os.environ


def exported(registry: CollectorRegistry = REGISTRY) -> CollectorRegistry:
    """``registry``, or one that adds up what all processes count."""
    if registry is not REGISTRY or not sums_several():
        return registry
    # Of files it is not known beforehand which series they hold.
    together = CollectorRegistry(support_collectors_without_names=True)
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return together
