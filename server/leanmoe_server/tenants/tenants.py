"""What each key's holder may have at once and per minute, what they had, and the highest level.

One ``Session`` is one request of one tenant, from the door until its last byte; the engine's
calls find it in ``SESSION``, wherever in vLLM they come from.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass

from leanmoe.policy import RequestLevel, hundredths_of
from leanmoe_server.keys.keyring import Keyring
from leanmoe_server.keys.keys import ANONYMOUS, Key
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Target
from leanmoe_server.settings import ServeSettings
from leanmoe_server.tenants.tenant_metrics import TenantMetrics
from leanmoe_server.tenants.tenant_usage import Excess, LocalUsage, Usage

SESSION: ContextVar[Session | None] = ContextVar("leanmoe_session", default=None)


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

    def count(self, kind: str, tokens: int) -> None:
        """Tokens of a prompt (``prompt``) or of an answer (``generated``) that were computed."""
        if tokens:
            self.tenants.count(self, kind, tokens)

    async def charge(self, tokens: int) -> None:
        """Hold tokens against the limit of the key."""
        if tokens:
            await self.tenants.charge(self, tokens)


def cap_of(key: Key, model: SkipModel) -> RequestLevel | None:
    """The highest level of ``key`` on ``model``; ``LevelError`` where it has no curve for it."""
    limits, caps = key.limits, []
    if limits.max_level is not None:
        lowest = min(limits.max_level, model.max_level)
        caps.append(RequestLevel(hundredths_of(lowest)))
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
        usage: Usage | None = None,
    ) -> None:
        self._model = settings.model
        self._shared = settings.share_prefix_cache
        self._metrics = metrics
        self.usage = usage or LocalUsage()
        self._caps: dict[str, RequestLevel | None] = {}
        self._running: Counter[str] = Counter()
        self._derived = settings.derived
        self.keyring = Keyring(settings.keys, self._accept, metrics.broken_file)

    def _accept(self, keys: tuple[Key, ...]) -> None:
        caps = {key.name: cap_of(key, self._model) for key in keys}
        self._caps = caps
        self._metrics.name_tenants(key.name for key in keys if not key.admin)

    def salt_of(self, key: Key | None) -> str | None:
        """A secret of this start and this tenant; nobody's own while anybody may come."""
        if key is None or self._shared:
            return None
        return self._derived(f"tenant {key.name}")

    def session(self, key: Key | None) -> Session:
        """A request of ``key``'s holder, which has not begun yet."""
        name = ANONYMOUS if key is None else key.name
        return Session(self, name, key, self._caps.get(name))

    async def begin(self, session: Session) -> Excess | None:
        """Count a request in, or say which limit it would break. ``end`` must follow if not."""
        key = session.key
        excess = None if key is None else await self.usage.begin(key.name, key.limits)
        if excess is not None:
            self._metrics.refused(session.name, excess.limit)
            return excess
        self._running[session.name] += 1
        self._metrics.began(session.name, self._running[session.name])
        return None

    def end(self, session: Session) -> None:
        """A request that began is over."""
        self._running[session.name] -= 1
        self._metrics.ended(session.name, self._running[session.name])
        if session.key is not None:
            self.usage.end(session.key.name, session.key.limits)

    def refused(self, name: str, reason: str) -> None:
        """Count a request that did not come in."""
        self._metrics.refused(name, reason)

    def count(self, session: Session, kind: str, tokens: int) -> None:
        """Tokens that were computed for the request."""
        self._metrics.tokens(session.name, kind, tokens)

    async def charge(self, session: Session, tokens: int) -> None:
        """Hold tokens against the limit of the request's key, if it has one."""
        if session.key is not None:
            await self.usage.charge(session.key.name, session.key.limits, tokens)
