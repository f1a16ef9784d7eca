"""The one owner of the skip policy: handshake at start, changes one at a time, all or unready."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from leanmoe import __version__
from leanmoe.curve import CurvePoint
from leanmoe.errors import ConflictError, LeanMoEError, RuntimeSeamError
from leanmoe.messages import (
    HandshakeReport,
    PolicyInForce,
    PolicyUpdate,
    SkipSnapshot,
    UnionBudget,
)
from leanmoe_server.audit.entry import Cause, Origin, PolicyRecord
from leanmoe_server.audit.trail import AuditTrail
from leanmoe_server.engine import Engine
from leanmoe_server.in_force import InForce
from leanmoe_server.policy import Policy, PolicyChange, Target
from leanmoe_server.pulse import Pulse
from leanmoe_server.readiness import Readiness, handshake_problems
from leanmoe_server.settings import ServeSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")
_GLANCE_SECONDS = 0.5
_AT_START = Origin(Cause.START, "start")
_UNDONE = 100  # changes that can be rolled back, one after the other


class Audience(Protocol):
    """The API processes that follow the policy."""

    async def announce(self, level: float) -> None:
        """Return when all know that answers may be computed at ``level`` from now on."""
        ...

    async def publish(self) -> None:
        """Return when all know what holds."""
        ...


class SkipControl(InForce):
    """Holds the settings and the policy in force, which it changes on every worker together.

    ``policy`` is what was asked for, ``current`` what the workers apply for it, ``trail`` what
    was changed and by whom. ``audience`` hears of every change.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        readiness: Readiness,
        pulse: Pulse,
        trail: AuditTrail,
    ) -> None:
        super().__init__(settings)
        self._engine = engine
        self._readiness = readiness
        self._pulse = pulse
        self._lock = asyncio.Lock()
        self.handshake: list[HandshakeReport] = []
        self.wrapped = False
        self._offered = False
        self.policy = settings.policy
        self.version = 0
        self.trail = trail
        # What holds on top of the operator's policy, and how often that changed.
        self.governor: str | None = None
        self.ceiling: float | None = None  # of the governor, where quality was found too low
        self.changes = 0
        self.operator_changes = 0
        self._before: deque[Policy] = deque(maxlen=_UNDONE)
        self.audience: Audience | None = None

    async def start(self) -> None:
        """Run the model once, check every layer on every worker, put the first policy in force.

        Never raises: a failure leaves the server unready with the reason.
        """
        try:
            # A layer proves that it skips by having run, and eager engines start without a run.
            await self._engine.warm_up()
            self.handshake = await self._engine.handshake()
        except Exception as error:
            self._readiness.refuse([f"the workers did not complete the handshake: {_said(error)}"])
            return
        problems = handshake_problems(
            self.handshake, self.settings.model, self.settings.every_worker_holds_all_layers
        )
        if problems:
            self._readiness.refuse(problems)
            return
        self.wrapped = True
        self.settings = self.settings.heeding(self.handshake)
        try:
            await self.change(PolicyChange(), _AT_START)
        except LeanMoEError as error:
            self._readiness.refuse([str(error)])

    async def _offer_levels(self) -> None:
        """Once; tried again at every change until all workers know table and factors."""
        if self._offered:
            return
        await self._offer_factors()
        if self.settings.request_levels_unavailable is None:
            await self._offer_table()
        self._offered = True

    async def _offer_factors(self) -> None:
        """First: a table that follows the norm rule needs them."""
        factors = self.settings.model.factors
        if factors is not None:
            await self._offer(self._engine.set_factors(factors), "the factors of experts")

    async def _offer_table(self) -> None:
        table = self.settings.model.level_table(self.request_key)
        await self._offer(self._engine.set_levels(table), "the table of levels")

    async def _offer(self, offering: Awaitable[Sequence[PolicyInForce]], what: str) -> None:
        try:
            answers = await offering
        except Exception as error:
            raise RuntimeSeamError(f"{what} did not reach the workers: {_said(error)}") from error
        _check_all_answered(answers, len(self.handshake))

    async def change(self, change: PolicyChange, origin: Origin) -> dict[str, Any]:
        """Put ``change`` in force on all workers, the rest as it was, and return ``describe()``.

        ``LevelError`` leaves everything as it was; ``RuntimeSeamError`` means that
        workers may disagree, and the server stays unready until a change succeeds. A change
        of nothing is none: the prefix cache stays, and so does the version.
        """
        # A client that hangs up must not leave half of the workers changed.
        return await asyncio.shield(self._change(change, origin))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One change at a time; whoever follows knows what became of it when it is over."""
        async with self._lock:
            try:
                yield
            finally:
                if self.audience is not None:
                    await self.audience.publish()

    async def _change(self, change: PolicyChange, origin: Origin) -> dict[str, Any]:
        async with self._alone():
            before, started = self.policy, self.current is not None
            await self._put(change.applied_to(before), origin)
            if started and self.policy != before:
                self._before.append(before)
            return self.describe()

    async def roll_back(self, origin: Origin, version: int | None = None) -> dict[str, Any]:
        """Put the policy of before the last change in force; again, the one of before that.

        After a change that did not reach every worker it is the policy that was in force before.
        ``ConflictError`` where there is nothing to go back to, or another ``version`` is in force.
        """
        return await asyncio.shield(self._roll_back(origin, version))

    async def _roll_back(self, origin: Origin, version: int | None) -> dict[str, Any]:
        async with self._alone():
            if version is not None and version != self.version:
                raise ConflictError(
                    f"version {version} is not in force, {self.version} is; somebody changed the "
                    "policy meanwhile, look at it again"
                )
            refused = self._readiness.refused
            await self._put(self._of_before(), origin)
            if not refused:
                self._before.pop()
            return self.describe()

    def _of_before(self) -> Policy:
        if self._readiness.refused:
            return self.policy
        if not self._before:
            raise ConflictError("no change was made since the start, so there is nothing to undo")
        return self._before[-1]

    async def _put(self, policy: Policy, origin: Origin) -> None:
        """What an operator or the quality check wants; the governor starts anew from there."""
        update = self.settings.resolve(policy, self.version + 1)
        before, enforced = self._recorded(), not self._holds(update)
        if enforced:
            await self._enforce(policy, update, origin)
        self.policy, self.governed = policy, None
        self.changes += 1
        if origin.cause is not Cause.SHADOW:
            self.ceiling = None
            self.operator_changes += 1
        await self._record(origin, before, enforced)

    async def _enforce(self, policy: Policy, update: PolicyUpdate, origin: Origin) -> None:
        """In force on all workers, or unready and in the trail as a change that failed."""
        if not self.wrapped:
            raise RuntimeSeamError(
                "the level cannot change: the model's layers are not wrapped, see /ready"
            )
        if (silence := self._pulse.problem) is not None:
            raise RuntimeSeamError(f"the level was not changed: {silence}")
        try:
            await self._unless_silent(self._offer_levels())
            await self._unless_silent(self._apply(update))
        except Exception as error:
            reason = f"skip level {update.level} did not reach every worker: {_said(error)}"
            self._readiness.refuse([f"{reason}; set a level again or restart"])
            wanted = PolicyRecord.of(policy, update, self.governor)
            await self.trail.record(origin, self._recorded(), wanted, self.version, reason)
            raise RuntimeSeamError(reason) from error
        self.current = update
        self._readiness.accept()
        logger.info("skip level %s in force, %s, version %d", update.level, policy, self.version)

    async def govern(
        self, level: float | None, union: UnionBudget | None, origin: Origin, based_on: int | None
    ) -> bool:
        """What holds on top of the operator's policy: a level for requests that name none
        (``None``: the engine's) and a budget.

        False, and nothing done, where the policy is not the one of ``based_on`` any more
        (``changes``). Errors are those of ``change``.
        """
        return await asyncio.shield(self._govern(level, union, origin, based_on))

    async def _govern(
        self, level: float | None, union: UnionBudget | None, origin: Origin, based_on: int | None
    ) -> bool:
        async with self._alone():
            if based_on != self.changes or self.current is None:
                return False
            before, enforced = self._recorded(), union != self.current.union
            if enforced:
                policy = replace(self.policy, union=union)
                update = self.settings.resolve(policy, self.version + 1)
                await self._enforce(policy, update, origin)
            self.governed = level
            await self._record(origin, before, enforced)
            return True

    async def limit(self, level: float, origin: Origin) -> None:
        """No higher than ``level`` from now on, for the engine and for the governor, until an
        operator decides. Errors are those of ``change``."""
        await asyncio.shield(self._limit(level, origin))

    async def _limit(self, level: float, origin: Origin) -> None:
        async with self._alone():
            self.ceiling = level
            if self.current is not None and self.current.level > level:
                before = self.policy
                await self._put(replace(before, target=Target(level=level)), origin)
                self._before.append(before)
                return
            recorded = self._recorded()
            # The governor starts anew, from the operator's policy to this.
            self.governed, self.changes = None, self.changes + 1
            await self._record(origin, recorded)

    async def set_governor(self, mode: str, origin: Origin) -> None:
        """An operator tells the governor what to do; it starts anew from the operator's policy."""
        if self.current is not None:
            await self.govern(None, self.policy.union, origin, self.changes)
        async with self._lock:
            before, self.governor = self._recorded(), mode
            await self._record(origin, before)

    @property
    def governed_budget(self) -> int | None:
        """The budget that the governor put in force beside the operator's, if it did."""
        union = None if self.current is None else self.current.union
        return None if union is None or union == self.policy.union else union.experts

    async def _record(
        self, origin: Origin, before: PolicyRecord | None, enforced: bool = False
    ) -> None:
        after = self._recorded()
        if after is not None and (enforced or after != before):
            await self.trail.record(origin, before, after, self.version)

    def _recorded(self) -> PolicyRecord | None:
        if self.current is None:
            return None
        found = PolicyRecord.of(self.policy, self.current, self.governor)
        return found if self.governed is None else found.model_copy(update={"level": self.governed})

    def _holds(self, update: PolicyUpdate) -> bool:
        """True where ``update`` is what all workers apply already, but for its number."""
        same = self.current is not None and update.model_copy(
            update={"version": self.current.version}
        )
        return same == self.current and self._readiness.ready

    async def _unless_silent(self, work: Awaitable[T]) -> T:
        """What ``work`` comes to, waited for only while the workers are not taken to hang."""
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait([task], timeout=_GLANCE_SECONDS))[0]:
            if (silence := self._pulse.problem) is not None:
                task.cancel()
                raise RuntimeSeamError(silence)
        return task.result()

    async def snapshot(self) -> list[SkipSnapshot]:
        """Every worker's counters; unready from now on if one applies another policy.

        Whoever set it went past the server, whose answers would state a level that does not apply.
        """
        version, changing = self.version, self._lock.locked()
        snapshots = await self._engine.snapshot()
        if (version, changing) == (self.version, False) and not self._lock.locked():
            self._compare(snapshots)
        return snapshots

    def _compare(self, snapshots: Sequence[SkipSnapshot]) -> None:
        wants = self.current
        if wants is None or self._readiness.refused:
            return
        strays = [found for found in snapshots if not _agrees(found, wants)]
        if strays:
            said = _disagreement(strays[0], wants)
            self._readiness.refuse([f"{said}; set a level again or restart"])

    async def _apply(self, update: PolicyUpdate) -> None:
        self.version = update.version
        self.spans.change(update.level)
        if self.audience is not None:
            await self.audience.announce(update.level)
        _check_acknowledged(await self._engine.set_policy(update), update, len(self.handshake))
        # KV computed under another level must not be reused under this one.
        if not await self._engine.reset_prefix_cache():
            raise RuntimeSeamError("the prefix cache could not be emptied")

    def describe(self) -> dict[str, Any]:
        """The policy in force and the measured promise that bounds it, for ``GET``."""
        current, policy, model = self.current, self.policy, self.settings.model
        union = policy.union if current is None else current.union
        answer: dict[str, Any] = {
            "leanmoe": __version__,
            "model": model.digest,
            "ready": self._readiness.ready,
            **self._level_in_force(),
            "phases": policy.phases,
            "union_budget": None if union is None else union.experts,
            "union_mode": None if union is None else union.mode,
            "max_level": model.max_level,
            "request_levels": self.settings.request_levels_unavailable is None,
            "version": self.version,
            "has_curve": model.curve is not None,
            "promise": None,
            "curve": None,
        }
        if model.curve is None or current is None:
            return answer
        # What a budget on distinct experts costs was not measured.
        if union is None:
            answer["promise"] = _shown(model.curve.point_at(current.level))
        answer["curve"] = [_shown(point) for point in model.curve.points]
        return answer

    def _level_in_force(self) -> dict[str, Any]:
        current = self.current
        if current is None:
            return {"level": None, "max_kld": None, "rule": None, "betas": {}}
        return {
            "level": current.level,
            "max_kld": self.policy.target.max_kld,
            "rule": current.rule,
            "betas": {str(layer): beta for layer, beta in current.betas.items()},
        }


def _shown(point: CurvePoint) -> dict[str, Any]:
    return {**point.model_dump(exclude={"betas"}), "rule": point.rule}


def _check_all_answered(answers: Sequence[PolicyInForce], workers: int) -> None:
    if len(answers) != workers:
        raise RuntimeSeamError(f"{len(answers)} of {workers} workers answered")


def _check_acknowledged(
    answers: Sequence[PolicyInForce], update: PolicyUpdate, workers: int
) -> None:
    _check_all_answered(answers, workers)
    for answer in answers:
        if not _agrees(answer, update):
            raise RuntimeSeamError(_disagreement(answer, update))


def _budget(wants: PolicyUpdate) -> int:
    return 0 if wants.union is None else wants.union.experts


def _agrees(found: PolicyInForce, wants: PolicyUpdate) -> bool:
    return (found.policy_version, found.level, found.rule, found.union_budget) == (
        wants.version,
        wants.level,
        wants.rule,
        _budget(wants),
    )


def _disagreement(found: PolicyInForce, wants: PolicyUpdate) -> str:
    has, asked = found.union_budget, _budget(wants)
    budgets = ("", "") if has == asked else (f" with budget {has}", f" with budget {asked}")
    rules = ("", "") if found.rule == wants.rule else (f" by {found.rule}", f" by {wants.rule}")
    return (
        f"worker {found.worker} has version {found.policy_version} at level "
        f"{found.level}{rules[0]}{budgets[0]}, expected version {wants.version} at level "
        f"{wants.level}{rules[1]}{budgets[1]}"
    )


def _said(error: Exception) -> str:
    """What an error says; a time-out says nothing by itself."""
    return str(error) or type(error).__name__
