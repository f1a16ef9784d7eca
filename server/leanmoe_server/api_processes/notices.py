"""What API processes tell each other."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from leanmoe.messages import PolicyUpdate


class _Notice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyState(_Notice):
    """What applies, as the owner of the policy says it.

    ``level`` may apply to answers from now on, also before ``current`` says that it does.
    ``started`` once the first policy is in force, or cannot be. ``read_at`` is when the workers'
    counters were last read, on the machine's monotonic clock.
    """

    level: float
    current: PolicyUpdate | None
    governed: float | None
    reasons: list[str]
    started: bool
    request_levels_unavailable: str | None
    read_at: float | None


class ControlRequest(_Notice):
    """A request to a control route, from whom the door let in."""

    method: str
    path: str
    query: str
    body: str
    caller: str | None
    admin: bool
    peer: str | None


class ControlAnswer(_Notice):
    """The answer to it."""

    status: int
    headers: dict[str, str]
    body: str


class SampledAnswer(_Notice):
    """An answer for the shadow's replays: token ids, and its level as requests carry it."""

    prompt: list[int]
    answer: list[int]
    hundredths: int
    deterministic: bool


class Use(_Notice):
    """The holder of a key begins a request, ends one, or had ``tokens`` computed."""

    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    tokens: int = 0
