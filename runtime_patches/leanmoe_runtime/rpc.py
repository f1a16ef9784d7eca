"""The methods the plugin gives vLLM's workers, called through ``collective_rpc``.

Arguments and answers are JSON texts of ``leanmoe.messages``: vLLM's RPC carries
strings without pickling.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch

from leanmoe.messages import (
    ExpertFactors,
    LevelTable,
    PolicyInForce,
    PolicyUpdate,
    RequestAssignments,
    RequestCounts,
    RequestNames,
    SkipSnapshot,
)
from leanmoe_runtime.compat import WorkerBase
from leanmoe_runtime.engine import engine_of
from leanmoe_runtime.handshake import engine_index, report, worker_name
from leanmoe_runtime.state import SkipState


def leanmoe_handshake(worker: Any) -> str:
    """JSON of a ``HandshakeReport``."""
    return report(worker).model_dump_json()


def leanmoe_set_policy(worker: Any, update_json: str) -> str:
    """Apply a ``PolicyUpdate``; JSON of the ``PolicyInForce`` after it."""
    _state(worker).apply(PolicyUpdate.model_validate_json(update_json))
    return PolicyInForce(**_in_force(worker)).model_dump_json()


def leanmoe_set_levels(worker: Any, table_json: str) -> str:
    """Take a ``LevelTable``; JSON of the ``PolicyInForce`` after it."""
    _state(worker).set_levels(LevelTable.model_validate_json(table_json))
    return PolicyInForce(**_in_force(worker)).model_dump_json()


def leanmoe_set_factors(worker: Any, factors_json: str) -> str:
    """Take ``ExpertFactors``; JSON of the ``PolicyInForce`` after it."""
    _state(worker).set_factors(ExpertFactors.model_validate_json(factors_json))
    return PolicyInForce(**_in_force(worker)).model_dump_json()


def leanmoe_snapshot(worker: Any) -> str:
    """JSON of a ``SkipSnapshot``."""
    return SkipSnapshot(
        **_in_force(worker),
        layers=_state(worker).counts(),
        resident_bytes=psutil.Process().memory_info().rss,
        device_bytes=_device_bytes(),
    ).model_dump_json()


def leanmoe_request_counts(worker: Any, names_json: str) -> str:
    """Close the accounts of ``RequestNames``; JSON of their ``RequestCounts``."""
    engine = engine_of(worker.vllm_config)
    names = RequestNames.model_validate_json(names_json).names
    each = engine.state.routed_per_token
    return RequestCounts(
        worker=worker_name(worker),
        engine=engine_index(worker),
        layers=sorted(engine.state.layers),
        requests={
            name: RequestAssignments(routed=each * ran.tokens, skipped=ran.skipped)
            for name, ran in engine.tally.take(names).items()
        },
    ).model_dump_json()


def _state(worker: Any) -> SkipState:
    return engine_of(worker.vllm_config).state


def _in_force(worker: Any) -> dict[str, Any]:
    state = _state(worker)
    return {
        "worker": worker_name(worker),
        "engine": engine_index(worker),
        "pid": os.getpid(),
        "policy_version": state.version,
        "level": state.level,
        "rule": state.rule,
        "union_budget": 0 if state.union is None else state.union.experts,
    }


def _device_bytes() -> int | None:
    if not torch.accelerator.is_available():
        return None
    free, total = torch.accelerator.get_memory_info()
    return int(total - free)


def add_worker_methods() -> None:
    """Attach the methods to ``WorkerBase``, as vLLM's endpoint-plugin contract prescribes."""
    for method in (
        *(leanmoe_handshake, leanmoe_set_policy, leanmoe_set_levels, leanmoe_snapshot),
        *(leanmoe_set_factors, leanmoe_request_counts),
    ):
        setattr(WorkerBase, method.__name__, method)
