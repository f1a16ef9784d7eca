"""What the holders of keys use now and in this minute, against the limits of their keys."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from leanmoe_server.keys.keys import KeyLimits

_BUSY_SECONDS = 1


@dataclass(frozen=True)
class Excess:
    """A limit of a key that a request would break, and when to come again."""

    reason: str
    limit: str
    retry_after: int


class Usage(Protocol):
    """Where uses of a whole server are counted, by the names of keys."""

    async def begin(self, name: str, limits: KeyLimits) -> Excess | None:
        """Count a request in, or say which limit it would break. ``end`` must follow if not.

        ``LeanMoEError`` where the counts are another process's, which does not answer.
        """
        ...

    def end(self, name: str, limits: KeyLimits) -> None:
        """A request that began is over."""
        ...

    async def charge(self, name: str, limits: KeyLimits, tokens: int) -> None:
        """Count tokens, also past the limit, as answers that run must."""
        ...


class LocalUsage:
    """The counts themselves, in the memory of this process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._storage: MemoryStorage | None = None

    async def begin(self, name: str, limits: KeyLimits) -> Excess | None:
        self._running[name] += 1
        try:
            excess = await self._excess(name, limits)
        except BaseException:
            self._running[name] -= 1
            raise
        if excess is not None:
            self._running[name] -= 1
        return excess

    def end(self, name: str, limits: KeyLimits) -> None:
        self._running[name] -= 1

    async def charge(self, name: str, limits: KeyLimits, tokens: int) -> None:
        if limits.tokens_per_minute is not None:
            item = RateLimitItemPerMinute(limits.tokens_per_minute)
            await self._by_tokens().hit(item, "tokens", name, cost=tokens)

    async def _excess(self, name: str, limits: KeyLimits) -> Excess | None:
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
