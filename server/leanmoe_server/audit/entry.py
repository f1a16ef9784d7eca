"""One line of the audit trail: a change of the policy, who asked for it and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from leanmoe.messages import Phases, PolicyUpdate, UnionMode
from leanmoe_server.policy import Policy


class Cause(StrEnum):
    """Why a policy changed; the metric has one series for each."""

    START = "start"
    ADMIN = "admin"
    ROLLBACK = "rollback"
    GOVERNOR = "governor"
    SHADOW = "shadow"


@dataclass(frozen=True)
class Origin:
    """Who asked for a change, from which address, and the reason given for it."""

    cause: Cause
    who: str
    peer: str | None = None
    reason: str | None = None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyRecord(_Record):
    """A policy as ``GET /v1/expert_skipping`` names it.

    ``level`` is that of requests which name none, the governor's where it raised it; ``governor``
    what that one was told to do.
    """

    level: float | None
    max_kld: float | None
    phases: Phases
    union_budget: int | None
    union_mode: UnionMode | None
    governor: str | None = None

    @classmethod
    def of(cls, policy: Policy, update: PolicyUpdate, governor: str | None = None) -> PolicyRecord:
        union = update.union
        return cls(
            level=update.level,
            max_kld=policy.target.max_kld,
            phases=policy.phases,
            union_budget=None if union is None else union.experts,
            union_mode=None if union is None else union.mode,
            governor=governor,
        )


class AuditEntry(_Record):
    """A change. ``error`` is set where it did not reach every worker and is not in force.

    ``id`` counts entries since the server started; ``version`` is the engine's policy version
    afterwards, which the governor's moves leave as it is.
    """

    id: int = Field(gt=0)
    time: str = Field(description="UTC, RFC 3339, milliseconds")
    cause: Cause
    who: str
    peer: str | None = None
    before: PolicyRecord | None = Field(serialization_alias="from")
    after: PolicyRecord = Field(serialization_alias="to")
    reason: str | None = None
    version: int
    error: str | None = None

    def as_json(self) -> str:
        return self.model_dump_json(by_alias=True)


def utc_now() -> str:
    """Now, as entries name it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
