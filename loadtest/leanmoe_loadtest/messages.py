"""What Locust's master and its workers tell each other about a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from leanmoe_loadtest.run import ConcurrencyLimit

API_KEY_VARIABLE = "OPENAI_API_KEY"
# From the master: the plan with a worker's share, and the request to stop. To it: records, the end.
GO, CUT, RECORDS, DONE = (f"leanmoe_{name}" for name in ("go", "cut", "records", "done"))


class ClockSkew(BaseModel):
    """Bounds of a worker's lead over the master's clock.

    A message that takes no time would tell it. Each one that takes some bounds it from one side:
    from above on the way to the worker, from below on the way back.
    """

    model_config = ConfigDict(extra="forbid")

    least: float
    most: float

    @property
    def seconds(self) -> float:
        """The smallest lead within the bounds."""
        return min(max(0.0, self.least), self.most)


class WorkerEnding(BaseModel):
    """How one worker's share ended."""

    model_config = ConfigDict(extra="forbid")

    name: str
    limit: ConcurrencyLimit
    skew: float


class Ending(BaseModel):
    """How a run ended; ``lost`` counts workers that went away in the middle."""

    model_config = ConfigDict(extra="forbid")

    started: float = 0.0
    ended: float = 0.0
    workers: list[WorkerEnding] = Field(default_factory=list)
    lost: int = 0
