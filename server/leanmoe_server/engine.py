"""What the server asks of an engine; the routes know nothing else of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from leanmoe.messages import (
    ExpertFactors,
    HandshakeReport,
    LevelTable,
    PolicyInForce,
    PolicyUpdate,
    RequestCounts,
    SkipSnapshot,
)


class Engine(Protocol):
    """Every call reaches all workers and returns one answer per worker."""

    async def warm_up(self) -> None:
        """Run a prompt and a decode step through the whole model, asking for no admission."""
        ...

    async def handshake(self) -> list[HandshakeReport]:
        """What each worker found in its model after loading."""
        ...

    async def set_policy(self, update: PolicyUpdate) -> Sequence[PolicyInForce]:
        """Put new betas in force between two engine steps."""
        ...

    async def set_levels(self, table: LevelTable) -> Sequence[PolicyInForce]:
        """Tell what single requests may ask for."""
        ...

    async def set_factors(self, factors: ExpertFactors) -> Sequence[PolicyInForce]:
        """Tell what the norm rule multiplies experts' weights by."""
        ...

    async def snapshot(self) -> list[SkipSnapshot]:
        """Counters and memory of each worker now."""
        ...

    async def request_counts(self, names: Sequence[str]) -> list[RequestCounts]:
        """What these requests had skipped, by the ids of their answers; each is told once."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget all cached KV, that of running requests included; True when it is gone."""
        ...

    def seats(self) -> int:
        """How many requests may run at once; more wait."""
        ...

    def dead(self) -> bool:
        """True once the engine cannot answer any more."""
        ...

    async def abort_all(self) -> None:
        """End every running request with ``finish_reason: abort``."""
        ...
