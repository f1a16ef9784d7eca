"""What is known of the request that a task answers, for the log's lines and for its span."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RequestMark:
    """One request: its id, the answer's status and level, and ``usage.expert_skipping``."""

    id: str
    status: int | None = None
    level: str | None = None
    ended: bool = False
    skipping: Mapping[str, Any] = field(default_factory=dict)

    @property
    def skipped_share(self) -> float | None:
        """Share of the answer's assignments that were skipped, where the workers told it."""
        routed = self.skipping.get("routed")
        return self.skipping["skipped"] / routed if routed else None


_MARK: ContextVar[RequestMark | None] = ContextVar("leanmoe_request", default=None)


def current_mark() -> RequestMark | None:
    """The request that this task answers; ``None`` outside of one."""
    return _MARK.get()


def keep_mark(mark: RequestMark) -> None:
    """The request that this task answers from now on."""
    _MARK.set(mark)


def keep_skipping(stated: Mapping[str, Any] | None) -> None:
    """What an answer's ``usage`` says of skipping, for its span."""
    mark = _MARK.get()
    if mark is not None and stated is not None:
        mark.skipping = stated
