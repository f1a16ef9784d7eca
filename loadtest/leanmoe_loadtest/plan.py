"""Everything a worker needs to know to send its share of a load; it has no secret in it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from leanmoe_loadtest.level_mix import WeightedLevel
from leanmoe_loadtest.source import Prompt


class Plan(BaseModel):
    """A load, resolved: what to send, and when (open loop) or how many at a time (closed loop)."""

    model_config = ConfigDict(extra="forbid")

    url: str
    model: str
    endpoint: str = "chat"
    seed: int = 0
    max_tokens: int = 64
    ignore_eos: bool = False
    keep_text: bool = False
    request_seconds: float = 120.0
    duration: float
    users: int | None = None
    max_requests: int | None = None
    schedule: list[float] | None = None
    max_concurrency: int = 1000
    prompts: list[Prompt]
    input_tokens: str | None = None
    tokens_per_word: float = 1.0
    extra_tokens: int = 0
    output_tokens: str | None = None
    trace_lengths: list[tuple[int | None, int | None]] | None = None
    levels: list[WeightedLevel] | None = None

    @property
    def concurrency(self) -> int:
        """The most requests that may run at once."""
        return self.max_concurrency if self.users is None else self.users
