"""What happened to one request: raw timestamps; every latency is derived and may be absent.

Times are Unix seconds as ``clock.now`` gives them.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field


class RequestRecord(BaseModel):
    """One streamed answer as the client saw it; a line of ``requests.jsonl``."""

    model_config = ConfigDict(extra="forbid")

    sent: float
    chunks: list[float] = Field(default_factory=list, description="arrival of each piece of text")
    chunk_tokens: list[int] | None = Field(
        default=None, description="tokens of each piece, where the server tells"
    )
    ended: float | None = None
    scheduled: float | None = Field(
        default=None, description="open loop: when it should have been sent"
    )
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    unfinished: bool = False
    endpoint: str = "chat"
    level: str | None = Field(
        default=None, description="what was sent as expert_skipping, as JSON; null: the server's"
    )
    applied_level: float | None = Field(default=None, description="X-LeanMoE-Skip-Level")
    prompt: int | None = Field(default=None, description="index in the prompt source")
    text: str | None = Field(default=None, description="the answer, where it was to be kept")
    worker: str | None = None

    @property
    def completed(self) -> bool:
        return self.error is None and not self.unfinished and self.ended is not None

    @property
    def late_seconds(self) -> float | None:
        """How long after its time it was sent; absent in a closed loop."""
        return None if self.scheduled is None else self.sent - self.scheduled

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token: from sending to the first piece of text."""
        return self.chunks[0] - self.sent if self.chunks else None

    @property
    def itl_seconds(self) -> list[float]:
        """Inter-token latencies: every gap between two pieces of text."""
        return [after - before for before, after in pairwise(self.chunks)]

    @property
    def e2e_seconds(self) -> float | None:
        """The whole request, to the end of its stream."""
        return None if self.ended is None else self.ended - self.sent

    @property
    def output_tokens(self) -> int:
        """Tokens by the server's usage, or pieces of text where it sent none."""
        return len(self.chunks) if self.completion_tokens is None else self.completion_tokens

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first; absent below two tokens."""
        if self.e2e_seconds is None or self.ttft_seconds is None or self.output_tokens < 2:
            return None
        return (self.e2e_seconds - self.ttft_seconds) / (self.output_tokens - 1)
