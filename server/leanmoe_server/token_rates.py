"""Tokens per second by phase, from the differences of vLLM's own counters."""

from __future__ import annotations

import time

from prometheus_client import REGISTRY, CollectorRegistry

from leanmoe_server.exported import exported

_PHASES = {"prefill": "vllm:prompt_tokens_total", "decode": "vllm:generation_tokens_total"}
# Shorter intervals say more about the scrape than about the engine.
_MIN_INTERVAL_SECONDS = 0.5


def _total(name: str, registry: CollectorRegistry) -> float:
    families = exported(registry).restricted_registry([name]).collect()
    return sum(s.value for family in families for s in family.samples if s.name == name)


class TokenRates:
    """Remembers the last reading; a rate covers the time since then."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._read_at = time.monotonic()
        self._totals = dict.fromkeys(_PHASES, 0.0)

    def read(self) -> dict[str, float]:
        """Tokens per second by phase; empty when asked again too soon."""
        now = time.monotonic()
        elapsed = now - self._read_at
        if elapsed < _MIN_INTERVAL_SECONDS:
            return {}
        totals = {phase: _total(name, self._registry) for phase, name in _PHASES.items()}
        rates = {phase: (totals[phase] - self._totals[phase]) / elapsed for phase in totals}
        self._read_at, self._totals = now, totals
        return rates
