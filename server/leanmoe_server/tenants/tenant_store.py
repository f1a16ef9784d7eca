"""vLLM's stores of responses, each tenant's apart: nobody reads, goes on from or cancels another's.

vLLM keeps responses by their ids alone, which a request may name itself.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from leanmoe_server.caller import caller_now

# Of vLLM's ``OpenAIServingResponses``: by the id of a response.
STORES = ("response_store", "msg_store", "event_store", "background_tasks")


class TenantStore(MutableMapping[str, Any]):
    """A dict of ids in which everybody sees what they put there, and nothing else."""

    def __init__(self) -> None:
        self._held: dict[tuple[str | None, str], Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._held[_tenant(), name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._held[_tenant(), name] = value

    def __delitem__(self, name: str) -> None:
        del self._held[_tenant(), name]

    def __iter__(self) -> Iterator[str]:
        own = _tenant()
        return iter([name for tenant, name in self._held if tenant == own])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _tenant() -> str | None:
    caller = caller_now()
    return None if caller is None else caller.name


def keep_responses_apart(serving: Any) -> None:
    """From now on the stores of ``serving`` are tenants' own; none has anything in it yet."""
    for name in STORES:
        setattr(serving, name, TenantStore())
