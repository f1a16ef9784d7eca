"""What each key's holder may have at once and per minute, what they had, and the highest level.

One ``Session`` is one request of one tenant, from the door until its last byte; the engine's
calls find it in ``SESSION``, wherever in vLLM they come from.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from leanmoe.policy import RequestLevel
from leanmoe_server.keyring import Keyring
from leanmoe_server.keys import ANONYMOUS, Key
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Target
from leanmoe_server.settings import ServeSettings
from leanmoe_server.tenant_metrics import TenantMetrics

SESSION: ContextVar[Session | None] = ContextVar("leanmoe_session", default=None)
_BUSY_SECONDS = 1


@dataclass(frozen=True)
class Excess:
    """A limit of a key that a request would break, and when to come again."""

    reason: str
    limit: str
    retry_after: int


@dataclass
class Session:
    """One request: whose it is, what it may skip at most, what it was given.

    ``level`` is what holds for it, once that is known; ``None``: the engine's own.
    """

    tenants: Tenants
    name: str
    key: Key | None
    cap: RequestLevel | None = None
    level: RequestLevel | None = None

    @property
    def salt(self) -> str | None:
        """What sets this tenant's cached prompts apart; ``None`` where they are shared."""
        return self.tenants.salt_of(self.key)

    async def count_tokens(self, kind: str, tokens: int) -> None:
        """Charge tokens of a prompt (``prompt``) or of an answer (``generated``)."""
        if tokens:
            await self.tenants.charge(self, kind, tokens)


def cap_of(key: Key, model: SkipModel) -> RequestLevel | None:
    """The highest level of ``key`` on ``model``; ``LevelError`` where it has no curve for it."""
    limits, caps = key.limits, []
    if limits.max_level is not None:
        lowest = min(limits.max_level, model.max_level)
        caps.append(RequestLevel(int(lowest * 100 + 1e-9)))
    if limits.max_kld is not None:
        caps.append(model.resolve_request(Target(max_kld=limits.max_kld)))
    if not caps:
        return None
    # A promised loss is kept past budgets on distinct experts too.
    return RequestLevel(min(one.hundredths for one in caps), any(one.deterministic for one in caps))


class Tenants:
    """All keys of a server with what their holders used."""

    def __init__(
        self,
        settings: ServeSettings,
        metrics: TenantMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = settings.model
        self._shared = settings.share_prefix_cache
        self._metrics = metrics
        self._clock = clock
        self._caps: dict[str, RequestLevel | None] = {}
        self._running: Counter[str] = Counter()
        self._secret = secrets.token_bytes(32)
        self._storage: MemoryStorage | None = None
        self.keyring = Keyring(settings.keys, self._accept, metrics.broken_file)

    def _accept(self, keys: tuple[Key, ...]) -> None:
        caps = {key.name: cap_of(key, self._model) for key in keys}
        self._caps = caps
        self._metrics.name_tenants(key.name for key in keys if not key.admin)

    def salt_of(self, key: Key | None) -> str | None:
        """A secret of this process and this tenant; nobody's own while anybody may come."""
        if key is None or self._shared:
            return None
        return hmac.digest(self._secret, key.name.encode(), hashlib.sha256).hex()

    def session(self, key: Key | None) -> Session:
        """A request of ``key``'s holder, which has not begun yet."""
        name = ANONYMOUS if key is None else key.name
        return Session(self, name, key, self._caps.get(name))

    async def begin(self, session: Session) -> Excess | None:
        """Count a request in, or say which limit it would break. ``end`` must follow."""
        self._running[session.name] += 1
        excess = None if session.key is None else await self._excess(session.key)
        if excess is not None:
            self._running[session.name] -= 1
            self._metrics.refused(session.name, excess.limit)
            return excess
        self._metrics.began(session.name, self._running[session.name])
        return None

    def end(self, session: Session) -> None:
        """A request that began is over."""
        self._running[session.name] -= 1
        self._metrics.ended(session.name, self._running[session.name])

    def refused(self, name: str, reason: str) -> None:
        """Count a request that did not come in."""
        self._metrics.refused(name, reason)

    async def charge(self, session: Session, kind: str, tokens: int) -> None:
        self._metrics.tokens(session.name, kind, tokens)
        limit = None if session.key is None else session.key.limits.tokens_per_minute
        if limit is not None:
            item = RateLimitItemPerMinute(limit)
            await self._by_tokens().hit(item, "tokens", session.name, cost=tokens)

    async def _excess(self, key: Key) -> Excess | None:
        limits, name = key.limits, key.name
        at_once = limits.concurrent_requests
        if at_once is not None and self._running[name] > at_once:
            said = f"this key has {at_once} requests running, its most; wait for one to end"
            return Excess(said, "concurrent_requests", _BUSY_SECONDS)
        per_minute = limits.tokens_per_minute
        if per_minute is not None:
            item = RateLimitItemPerMinute(per_minute)
            if not await self._by_tokens().test(item, "tokens", name):
                return await self._spent(self._by_tokens(), item, "tokens", name)
        per_minute = limits.requests_per_minute
        if per_minute is not None:
            item = RateLimitItemPerMinute(per_minute)
            if not await self._by_requests().hit(item, "requests", name):
                return await self._spent(self._by_requests(), item, "requests", name)
        return None

    async def _spent(
        self,
        limiter: FixedWindowRateLimiter | SlidingWindowCounterRateLimiter,
        item: RateLimitItem,
        what: str,
        name: str,
    ) -> Excess:
        stats = await limiter.get_window_stats(item, what, name)
        seconds = max(1, math.ceil(stats.reset_time - self._clock()))
        said = f"this key had its {item.amount} {what} of this minute; come again in {seconds} s"
        return Excess(said, f"{what}_per_minute", seconds)

    def _memory(self) -> MemoryStorage:
        # It wants an event loop, which there is not yet while a server is put together.
        self._storage = self._storage or MemoryStorage()
        return self._storage

    def _by_requests(self) -> SlidingWindowCounterRateLimiter:
        return SlidingWindowCounterRateLimiter(self._memory())

    def _by_tokens(self) -> FixedWindowRateLimiter:
        """It counts what was used even past the limit, as answers that run must."""
        return FixedWindowRateLimiter(self._memory())
