"""Replays sampled answers, served level beside exact, and watches what comes out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from leanmoe.errors import LeanMoEError
from leanmoe.messages import Phases
from leanmoe.policy import EXACT, HUNDREDTHS, RequestLevel
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.control import SkipControl
from leanmoe_server.metrics import Metrics
from leanmoe_server.shadow.estimate import TopLogprobs, distance
from leanmoe_server.shadow.ledger import Ledger
from leanmoe_server.shadow.sampling import Answer, Sampler
from leanmoe_server.shadow.terms import ShadowTerms

logger = logging.getLogger(__name__)
TOP = 20  # vLLM's own bound, unless --max-logprobs says more
_NOISE_EVERY = 4
_LOOK_SECONDS = 1.0


class Scorer(Protocol):
    """What an engine does for it."""

    @property
    def has_priorities(self) -> bool:
        """True where a request can be told to wait for all others."""
        ...

    async def score(
        self, tokens: Sequence[int], extra: dict[str, int], salt: str, top: int
    ) -> list[TopLogprobs]:
        """For each token but the first, the most likely tokens in its place; prefill only."""
        ...


class Shadow:
    """One replay at a time, within the budget, when nobody waits."""

    def __init__(
        self,
        terms: ShadowTerms,
        control: SkipControl,
        sampler: Sampler,
        scorer: Scorer,
        metrics: Metrics,
        idle: Callable[[], bool],
    ) -> None:
        self._terms, self._control, self._sampler = terms, control, sampler
        self._scorer, self._metrics, self._idle = scorer, metrics, idle
        self._ledger = Ledger(EXACT)
        self._left = float(terms.tokens_per_minute)
        self._replayed = 0
        self._loop: asyncio.Task[None] | None = None
        self.breached: str | None = None
        self._based_on: int | None = None

    def start(self) -> None:
        """Replay until the event loop ends."""
        self._loop = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            try:
                await self.look(now - last)
            except Exception as error:
                self._metrics.shadow_replays.labels("failed").inc()
                logger.error("an answer could not be replayed: %s", error)
            last = now

    async def look(self, seconds: float) -> None:
        """Replay one answer, if there is one and it is time."""
        self._forgive()
        minute = float(self._terms.tokens_per_minute)
        self._left = min(minute, self._left + seconds * minute / 60)
        if self.unavailable is not None:
            self._sampler.held.clear()
        if not self._sampler.held or self._left <= 0 or not self._may_run():
            return
        await self.replay(self._sampler.held.popleft())

    def _may_run(self) -> bool:
        return self._scorer.has_priorities or self._idle()

    @property
    def unavailable(self) -> str | None:
        """Why a replay would not show what was served."""
        current, settings = self._control.current, self._control.settings
        if settings.request_levels_unavailable is not None:
            return settings.request_levels_unavailable
        if current is not None and current.union is not None:
            return "with a budget on distinct experts an answer depends on its batch"
        if current is not None and current.phases is Phases.DECODE:
            return "with phases 'decode' a replay, which is all prompt, would skip nothing"
        return None

    async def replay(self, one: Answer) -> None:
        """Score ``one`` at its level and exact, in turns first, and book the difference."""
        exact = RequestLevel(0, deterministic=True)
        first, second = (exact, one.level) if self._replayed % 2 else (one.level, exact)
        scores = {level: await self._score(one, level) for level in (first, second)}
        again = None
        if self._replayed % _NOISE_EVERY == 0:
            again = distance(scores[exact], await self._score(one, exact))
        self._replayed += 1
        self._metrics.shadow_replays.labels("replayed").inc()
        ledger = self._ledger_at(one.level)
        if again is not None:
            ledger.noise.append(again)
        bound = ledger.add(distance(scores[exact], scores[one.level]))
        self._metrics.observe_shadow("served", ledger.kld, ledger.top1)
        if ledger.noise:
            self._metrics.observe_shadow("exact", ledger.noise_kld, ledger.noise_top1)
        if bound is not None:
            await self._judge(ledger, bound)

    async def _score(self, one: Answer, level: RequestLevel) -> list[TopLogprobs]:
        """Of the answer's tokens. The salt is of this one prefill: it reads no cached keys and
        values, and leaves none that others could read."""
        self._left -= len(one)
        self._metrics.shadow_tokens.inc(len(one))
        extra = {self._control.request_key: level.pack()}
        found = await self._scorer.score(
            (*one.prompt, *one.answer), extra, secrets.token_hex(32), TOP
        )
        return list(found[-len(one.answer) :])

    def _ledger_at(self, level: RequestLevel) -> Ledger:
        if self._ledger.level != level.level:
            self._ledger = Ledger(level.level)
        return self._ledger

    async def _judge(self, ledger: Ledger, bound: float) -> None:
        limit = self._terms.max_kld
        self._metrics.shadow_lower.set(bound)
        if limit is None or bound <= limit or self._sampler.level is None:
            return
        lower = self._lower_level(ledger, limit)
        why = f"measured KLD is above {bound:.4g} at level {ledger.level:g}, past {limit:g}"
        logger.error("shadow quality: %s; level %g from now on", why, lower)
        self.breached = why
        self._metrics.shadow_breach.set(1)
        try:
            await self._control.limit(lower, Origin(Cause.SHADOW, "shadow", reason=why))
        except LeanMoEError as error:
            logger.error("shadow quality: the level could not be forced down: %s", error)
        self._based_on = self._control.operator_changes

    def _lower_level(self, ledger: Ledger, limit: float) -> float:
        """The highest measured level below, whose KLD, off by as much as here, is within."""
        curve = self._control.settings.model.curve
        if curve is None:
            return EXACT
        promised, found = curve.point_at(ledger.level).kld, ledger.kld or 0.0
        off = max(1.0, found / promised) if promised > 0 else float("inf")
        below = [
            point.level
            for point in curve.points
            if point.level < ledger.level and (point.kld == 0.0 or point.kld * off <= limit)
        ]
        return int(max(below, default=EXACT) * HUNDREDTHS) / HUNDREDTHS

    def _forgive(self) -> None:
        """An operator who changed the policy since a breach has decided what holds."""
        if self.breached is not None and self._based_on != self._control.operator_changes:
            self.breached = None
            self._metrics.shadow_breach.set(0)

    def describe(self) -> dict[str, Any]:
        """For ``GET``."""
        self._forgive()
        ledger = self._ledger
        return {
            "unavailable": self.unavailable,
            "level": ledger.level,
            "answers": len(ledger.shown),
            "kld": ledger.kld,
            "top1_agreement": ledger.top1,
            "covered": ledger.covered,
            "noise_kld": ledger.noise_kld,
            "noise_top1_agreement": ledger.noise_top1,
            "max_kld": self._terms.max_kld,
            "breach": self.breached,
        }
