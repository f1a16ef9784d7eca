"""An engine without a model: honest answers in the worker protocol, faults on request.

For tests and for trying the control API without loading weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from leanmoe import __version__
from leanmoe.messages import (
    ExpertFactors,
    HandshakeReport,
    LayerCounts,
    LayerReport,
    LevelTable,
    PolicyUpdate,
    RequestAssignments,
    RequestCounts,
    SkipMode,
    SkipSnapshot,
)


@dataclass
class FakeWorker:
    """One worker's state; ``deaf`` workers ignore policies, ``unwrapped`` layers do not skip,
    ``bypassed`` ones are wrapped and never reached."""

    name: str
    layers: tuple[int, ...]
    deaf: bool = False
    unwrapped: frozenset[int] = frozenset()
    bypassed: frozenset[int] = frozenset()
    request_levels_unavailable: str | None = None
    policy: PolicyUpdate = field(default_factory=lambda: PolicyUpdate(level=0, betas={}, version=0))
    tokens: int = 0
    skipped: int = 0

    def report(self, layer: int) -> LayerReport:
        wrapped = layer not in self.unwrapped
        return LayerReport(
            layer=layer,
            name=f"model.layers.{layer}.mlp.experts",
            wrapped=wrapped,
            ran=layer not in self.bypassed,
            modular=True,
            n_routed_experts=8,
            top_k=2,
            renormalize=True,
            mode=SkipMode.COMPACT,
            experts_class="FakeExperts",
            problem=None if wrapped else "the router could not be wrapped",
        )

    def snapshot(self) -> SkipSnapshot:
        counts = [
            LayerCounts(layer=i, tokens=self.tokens, routed=2 * self.tokens, skipped=self.skipped)
            for i in self.layers
        ]
        return SkipSnapshot(
            worker=self.name,
            pid=os.getpid(),
            policy_version=self.policy.version,
            level=self.policy.level,
            rule=self.policy.rule,
            union_budget=0 if self.policy.union is None else self.policy.union.experts,
            layers=counts,
            resident_bytes=1 << 20,
        )


class FakeEngine:
    """Implements ``Engine`` over ``FakeWorker``s that the caller may bend."""

    def __init__(self, layers: Iterable[int] = range(4), workers: int = 1) -> None:
        names = [f"rank{i}" for i in range(workers)]
        self.workers = [FakeWorker(name, tuple(layers)) for name in names]
        self.cache_resets = 0
        self.aborts = 0
        self.cache_reset_works = True
        self.levels: LevelTable | None = None
        self.factors: ExpertFactors | None = None
        self.died = False
        # What requests had skipped, by the ids of their answers.
        self.requests: dict[str, RequestAssignments] = {}

    def run_tokens(self, tokens: int) -> None:
        """Pretend that ``tokens`` went through; at level 1 the second expert of each is skipped."""
        for worker in self.workers:
            worker.tokens += tokens
            worker.skipped += tokens if worker.policy.level == 1.0 else 0

    async def warm_up(self) -> None:
        self.run_tokens(2)

    async def handshake(self) -> list[HandshakeReport]:
        return [
            HandshakeReport(
                worker=worker.name,
                pid=os.getpid(),
                plugin_version=__version__,
                vllm_version="0.32.0",
                layers=[worker.report(layer) for layer in worker.layers],
                weight_bytes=1000,
                request_levels_unavailable=worker.request_levels_unavailable,
            )
            for worker in self.workers
        ]

    async def set_policy(self, update: PolicyUpdate) -> list[SkipSnapshot]:
        for worker in self.workers:
            if not worker.deaf:
                worker.policy = update
        return await self.snapshot()

    async def set_levels(self, table: LevelTable) -> list[SkipSnapshot]:
        self.levels = table
        return await self.snapshot()

    async def set_factors(self, factors: ExpertFactors) -> list[SkipSnapshot]:
        self.factors = factors
        return await self.snapshot()

    async def snapshot(self) -> list[SkipSnapshot]:
        return [worker.snapshot() for worker in self.workers]

    async def request_counts(self, names: Sequence[str]) -> list[RequestCounts]:
        found = {name: self.requests.pop(name) for name in names if name in self.requests}
        return [
            RequestCounts(worker=worker.name, layers=list(worker.layers), requests=found)
            for worker in self.workers
        ]

    async def reset_prefix_cache(self) -> bool:
        self.cache_resets += 1
        return self.cache_reset_works

    def seats(self) -> int:
        return 8

    def dead(self) -> bool:
        return self.died

    async def abort_all(self) -> None:
        self.aborts += 1
