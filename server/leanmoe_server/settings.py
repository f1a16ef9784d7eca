"""What a running server was told: the model, the first policy, keys and deadlines."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanmoe.errors import LevelError
from leanmoe.messages import HandshakeReport, Phases, PolicyUpdate, UnionBudget
from leanmoe_server.governor.aims import Aims
from leanmoe_server.keys.key_source import KeySource
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Policy
from leanmoe_server.shadow.terms import ShadowTerms

# For a request to arrive whole, and for a client to read on.
CLIENT_SECONDS = 60.0
# Longer than proxies keep the connections that they reuse (nginx: 60).
KEEP_ALIVE_SECONDS = 90.0
MAX_WAITING = 1024
MAX_BODY_MIB = 32


@dataclass(frozen=True)
class ServeSettings:
    """Everything the routes and background tasks are configured with.

    ``request_levels_unavailable`` says why single requests may not choose, where they may not, and
    ``union_unavailable`` why there can be no budget on distinct experts. ``least_union`` is the
    smallest that captured graphs hold, where they hold one.
    """

    model: SkipModel
    policy: Policy = field(default_factory=Policy)
    keys: KeySource = field(default_factory=KeySource)
    share_prefix_cache: bool = False
    every_worker_holds_all_layers: bool = True
    request_levels_unavailable: str | None = None
    union_unavailable: str | None = None
    least_union: int = 0
    poll_seconds: float = 5.0
    drain_seconds: float = 30.0
    client_seconds: float = CLIENT_SECONDS
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    max_waiting: int = MAX_WAITING
    max_body_bytes: int = MAX_BODY_MIB << 20
    audit_file: Path | None = None
    governor: Aims | None = None
    shadow: ShadowTerms | None = None
    # Of one start, and the same in all of its API processes.
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def request_key(self) -> str:
        """The name under which a request's own level travels to the workers."""
        return f"leanmoe-{self.derived('request')[:32]}"

    def derived(self, purpose: str) -> str:
        """A secret of this start for ``purpose``, as hexadecimal digits."""
        return hmac.digest(self.secret, purpose.encode(), hashlib.sha256).hex()

    def heeding(self, workers: Iterable[HandshakeReport]) -> ServeSettings:
        """These settings with what a worker found that requests cannot have, if one did."""
        reasons = [self.request_levels_unavailable]
        reasons += [report.request_levels_unavailable for report in workers]
        first = next((reason for reason in reasons if reason is not None), None)
        return replace(self, request_levels_unavailable=first)

    def resolve(self, policy: Policy, version: int = 0) -> PolicyUpdate:
        """What ``policy`` comes to on this engine; ``LevelError`` where it cannot be."""
        if policy.union is not None:
            self._check_union(policy.union)
        if policy.phases is Phases.DECODE and self.request_levels_unavailable is not None:
            raise LevelError(
                "prompts and answers cannot be told apart here: "
                f"{self.request_levels_unavailable}; leave phases at 'all'"
            )
        return self.model.resolve(policy, version)

    def _check_union(self, union: UnionBudget) -> None:
        if self.union_unavailable is not None:
            raise LevelError(
                f"there can be no budget on distinct experts here: {self.union_unavailable}"
            )
        if union.experts < self.least_union:
            raise LevelError(
                f"union_budget is {union.experts}, and the graphs captured at the start hold "
                f"budgets of {self.least_union} experts and more; start the server with "
                f"--union-budget {union.experts}"
            )
