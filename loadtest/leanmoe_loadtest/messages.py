"""What Locust's master and its workers tell each other about a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from leanmoe_loadtest.run import ConcurrencyLimit

API_KEY_VARIABLE = "OPENAI_API_KEY"
# From the master: the plan with a worker's share, and the wish to stop. To it: records, the end.
GO, CUT, RECORDS, DONE = (f"leanmoe_{name}" for name in ("go", "cut", "records", "done"))


class WorkerEnding(BaseModel):
    """How one worker's share ended; ``clock_skew`` is its clock's lead over the master's."""

    model_config = ConfigDict(extra="forbid")

    name: str
    limit: ConcurrencyLimit
    clock_skew: float


class Ending(BaseModel):
    """How a run ended; ``lost`` counts workers that went away in the middle."""

    model_config = ConfigDict(extra="forbid")

    started: float = 0.0
    ended: float = 0.0
    workers: list[WorkerEnding] = Field(default_factory=list)
    lost: int = 0
