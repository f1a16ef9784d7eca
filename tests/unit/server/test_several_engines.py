"""Data-parallel engines behind vLLM's client: all answers are asked for, and all are checked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from leanmoe.errors import RuntimeSeamError
from leanmoe.messages import ExpertFactors, LevelTable, PolicyInForce, PolicyUpdate
from leanmoe_server.assembly import build_service
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.control import SkipControl
from leanmoe_server.fake_engine import FakeEngine, FakeWorker
from leanmoe_server.metrics import Metrics
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import PolicyChange, Target
from leanmoe_server.readiness import Readiness
from leanmoe_server.settings import ServeSettings
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from leanmoe_server.vllm_engine import VllmEngine


class Client:
    """vLLM's client as the server sees it: engines that give out what a ``FakeEngine`` says."""

    def __init__(self, engines: int, answering: int | None = None) -> None:
        self.engines = [FakeEngine() for _ in range(engines)]
        self.answering = engines if answering is None else answering
        self.warmed: list[int | None] = []
        parallel = SimpleNamespace(data_parallel_size=engines)
        scheduler = SimpleNamespace(max_num_seqs=4)
        self.vllm_config = SimpleNamespace(parallel_config=parallel, scheduler_config=scheduler)
        self.engine_core = SimpleNamespace(call_utility_all_async=self._all)

    async def collective_rpc(self, method: str, args: tuple[str, ...] = ()) -> list[str]:
        """As vLLM's: the answers of the first engine."""
        return await self._of(self.engines[0], method, args)

    async def _all(
        self, name: str, method: str, timeout: None, args: tuple[str, ...], kwargs: None
    ) -> list[list[str]]:
        assert name == "collective_rpc"
        every = [await self._of(engine, method, args) for engine in self.engines]
        return every[: self.answering]

    async def _of(self, engine: FakeEngine, method: str, args: tuple[str, ...]) -> list[str]:
        ask: Any = getattr(engine, method.removeprefix("leanmoe_"))
        kinds = {
            "set_policy": PolicyUpdate,
            "set_levels": LevelTable,
            "set_factors": ExpertFactors,
        }
        kind = kinds.get(method[8:])
        answers = await ask(*(kind.model_validate_json(one) for one in args if kind))
        said = [answer.model_dump() for answer in answers]
        # A change is answered without counters.
        short = set(PolicyInForce.model_fields) if kind else None
        return [
            json.dumps({k: v for k, v in one.items() if not short or k in short}) for one in said
        ]

    async def generate(self, *_: Any, data_parallel_rank: int | None = None, **__: Any) -> Any:
        self.warmed.append(data_parallel_rank)
        await self.engines[data_parallel_rank or 0].warm_up()
        yield None

    async def reset_prefix_cache(self, **_: bool) -> bool:
        return True


def start(client: Client) -> tuple[SkipControl, Readiness]:
    settings = ServeSettings(SkipModel((0, 1, 2, 3), None))
    registry = CollectorRegistry()
    metrics, tenants = Metrics(registry), TenantMetrics(registry)
    service = build_service(VllmEngine(client), settings, metrics, tenants)
    asyncio.run(service.control.start())
    return service.control, service.readiness


def test_each_engine_is_warmed_up_and_reports() -> None:
    client = Client(2)
    control, readiness = start(client)
    assert readiness.ready and len(control.handshake) == 2
    assert sorted(client.warmed) == [0, 1]
    assert start(one := Client(1))[1].ready and one.warmed == [None]


def test_a_layer_that_the_second_engine_did_not_wrap_keeps_the_server_unready() -> None:
    client = Client(2)
    client.engines[1].workers[0].unwrapped = frozenset({2})
    _, readiness = start(client)
    assert "layer 2" in readiness.reasons[0]


def test_a_second_engine_that_ignores_the_level_is_seen() -> None:
    client = Client(2)
    control, readiness = start(client)
    client.engines[1].workers[0] = FakeWorker("engine1-rank0", (0, 1, 2, 3), deaf=True)
    change = control.change(PolicyChange(target=Target(level=1.0)), Origin(Cause.ADMIN, "admin"))
    with pytest.raises(RuntimeSeamError, match="engine1-rank0 has version 0"):
        asyncio.run(change)
    assert not readiness.ready and "engine1-rank0" in readiness.reasons[0]


def test_an_engine_that_does_not_answer_is_counted() -> None:
    _, readiness = start(Client(2, answering=1))
    assert "1 of 2 engines answered" in readiness.reasons[0]


def test_counters_of_engines_are_added_up_and_a_second_rank_s_are_not() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    engine = FakeEngine(range(1), workers=2)
    engine.run_tokens(10)
    ranks = [worker.snapshot() for worker in engine.workers]
    second = [one.model_copy(update={"engine": 1}) for one in ranks]
    metrics.observe_snapshots([*ranks, *second])
    name, labels = "leanmoe_routed_assignments_total", {"layer": "0"}
    assert registry.get_sample_value(name, labels) == 2 * 10 * 2
    engine.run_tokens(5)
    metrics.observe_snapshots([*(worker.snapshot() for worker in engine.workers), *second])
    assert registry.get_sample_value(name, labels) == 2 * 10 * 2 + 2 * 5
