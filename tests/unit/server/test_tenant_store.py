"""Stored responses are seen by the tenant who stored them, also where ids are the same."""

from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest

from leanmoe_server.caller import Caller, keep_caller
from leanmoe_server.tenants.tenant_store import STORES, TenantStore, keep_responses_apart

pytestmark = pytest.mark.anyio


async def test_ids_of_two_tenants_are_two() -> None:
    store = TenantStore()
    found: dict[str, object] = {}

    async def request(name: str) -> None:
        keep_caller({}, Caller(name))
        before = store.get("resp_1")
        store["resp_1"] = name
        async with anyio.create_task_group() as background:
            background.start_soon(anyio.sleep, 0)
        found[name] = (before, store["resp_1"], list(store), len(store))

    async with anyio.create_task_group() as requests:
        for name in ("alice", "bob"):
            requests.start_soon(request, name)
    assert found == {name: (None, name, ["resp_1"], 1) for name in ("alice", "bob")}
    assert "resp_1" not in store and store.pop("resp_1", None) is None


async def test_every_store_of_vllm_s_is_replaced() -> None:
    serving = SimpleNamespace(**{name: {} for name in STORES})
    keep_responses_apart(serving)
    assert all(isinstance(store, TenantStore) for store in vars(serving).values())
