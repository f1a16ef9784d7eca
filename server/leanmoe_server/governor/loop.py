"""The governor of a running server: looks once a second, decides, and has the control do it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from leanmoe.errors import InputError, LeanMoEError, LevelError
from leanmoe.messages import UnionBudget
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.control import SkipControl
from leanmoe_server.governor.aims import Aims, GovernorMode
from leanmoe_server.governor.decision import Move, State, decide
from leanmoe_server.governor.ladder import Ladder, Lever, budget_rungs, level_rungs
from leanmoe_server.governor.observation import Observation
from leanmoe_server.governor.readings import Readings
from leanmoe_server.metrics import Metrics
from leanmoe_server.poller import Poller

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0


class Governor:
    """Moves between the operator's policy, its base, and the floor of quality.

    Every change by somebody else gives it a new base, from which it starts anew.
    """

    def __init__(
        self, aims: Aims, control: SkipControl, poller: Poller, readings: Readings, metrics: Metrics
    ) -> None:
        self._aims = aims
        self._control = control
        self._poller = poller
        self._readings = readings
        self._metrics = metrics
        self._loop: asyncio.Task[None] | None = None
        self._state = State()
        self._ladder = Ladder()
        self._based_on: int | None = None
        self._said: str | None = None
        control.governor = aims.mode

    @property
    def mode(self) -> GovernorMode:
        return GovernorMode(self._control.governor or GovernorMode.HOLD)

    def start(self) -> None:
        """Look until the event loop ends."""
        self._loop = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._poller.refresh(LOOK_SECONDS / 2, LOOK_SECONDS)
            now = time.monotonic()
            try:
                await self.look(self._readings.observe(now - last, self._poller.latest))
            except Exception as error:
                # Whatever it is, the server goes on at the operator's policy.
                logger.exception("the governor stops, at the operator's policy: %s", error)
                await self._disarm(f"it failed: {error}")
            last = now

    async def look(self, seen: Observation) -> None:
        """Decide on one observation and do it."""
        self._rebase()
        if self._state.disarmed is not None or self.mode is GovernorMode.HOLD:
            self._tell()
            return
        if (problem := self._problem()) is not None:
            await self._disarm(problem)
            return
        before = self._state
        state, move = decide(before, seen, self._aims.objectives, self._ladder)
        if move is None:
            self._state = state
        elif self.mode is GovernorMode.ACT:
            await self._move(state, move)
        else:
            self._say(f"would go from rung {move.before} to {move.after}: {move.reason}")
            self._state = replace(state, rung=before.rung, below=before.below)
        self._tell()

    def told(self, mode: str) -> None:
        """An operator chose a mode: also what arms it again."""
        self._state = State()
        self._said = None
        logger.info("the governor is told to %s", mode)

    def describe(self) -> dict[str, Any]:
        """For ``GET``: what it is doing, why not, and where it stands between base and floor."""
        self._rebase()
        aims, state = self._aims, self._state
        return {
            "mode": self.mode,
            "disarmed": state.disarmed,
            "level": self._control.governed,
            "union_budget": self._control.governed_budget,
            "rung": state.rung,
            "lever": state.lever,
            "levels": list(self._ladder.levels),
            "budgets": list(self._ladder.budgets),
            "pressure": round(state.pressure, 3),
            "slo_ttft_ms": _milliseconds(aims.objectives.ttft_seconds),
            "slo_itl_ms": _milliseconds(aims.objectives.itl_seconds),
            "max_level": aims.top,
            "advice": self._said,
        }

    def _rebase(self) -> None:
        """Another ladder, and a fresh start, where the operator or the quality check changed."""
        if self._based_on == self._control.changes:
            return
        self._based_on = self._control.changes
        self._state = State(disarmed=None)
        self._ladder = self._ladder_now()

    def _ladder_now(self) -> Ladder:
        control, aims = self._control, self._aims
        base = 0.0 if control.current is None else control.current.level
        model = control.settings.model
        top = min(aims.top, model.max_level, 1.0 if control.ceiling is None else control.ceiling)
        return Ladder(level_rungs(base, top, model.curve), self._budgets())

    def _budgets(self) -> tuple[int, ...]:
        policy, least = self._control.policy, self._aims.least_budget
        if least is None:
            return ()
        try:
            self._control.settings.resolve(replace(policy, union=UnionBudget(experts=least)))
        except LevelError as error:
            logger.warning("the governor sets no budget: %s", error)
            return ()
        most = policy.union.experts if policy.union else self._control.settings.model.n_experts
        return budget_rungs(most, least)

    def _problem(self) -> str | None:
        """What keeps it from governing at all."""
        unavailable = self._control.settings.request_levels_unavailable
        if unavailable is not None:
            return f"requests cannot be given a level here: {unavailable}"
        return self._readings.problem

    async def _move(self, state: State, move: Move) -> None:
        level, union = self._policy_at(state)
        origin = Origin(Cause.GOVERNOR, "governor", reason=move.reason)
        try:
            if not await self._control.govern(level, union, origin, self._based_on):
                return  # the operator was quicker: the next look starts from there
        except LeanMoEError as error:
            await self._disarm(f"its change failed: {error}")
            return
        self._state = state
        self._metrics.governor_moves.labels("up" if move.after > move.before else "down").inc()
        where = f"level {level}" if union is None else f"budget {union.experts}"
        logger.info("governor: rung %d, %s: %s", move.after, where, move.reason)
        if state.disarmed is not None:
            logger.warning("the governor disarms itself: %s", state.disarmed)

    def _policy_at(self, state: State) -> tuple[float | None, UnionBudget | None]:
        policy = self._control.policy
        if not state.rung:
            return None, policy.union
        if state.lever is Lever.LEVELS:
            return self._ladder.levels[state.rung - 1], policy.union
        experts = self._ladder.budgets[state.rung - 1]
        return None, (policy.union or UnionBudget(experts=experts)).model_copy(
            update={"experts": experts}
        )

    async def _disarm(self, why: str) -> None:
        logger.warning("the governor disarms itself: %s", why)
        self._state = State(disarmed=why)
        origin = Origin(Cause.GOVERNOR, "governor", reason=f"disarmed: {why}"[:500])
        try:
            await self._control.govern(None, self._control.policy.union, origin, self._based_on)
        except LeanMoEError as error:
            logger.error("the governor could not go back to the operator's policy: %s", error)
        self._tell()

    def _say(self, advice: str) -> None:
        if advice != self._said:
            logger.info("the governor %s", advice)
        self._said = advice

    def _tell(self) -> None:
        state, control = self._state, self._control
        armed = state.disarmed is None and self.mode is not GovernorMode.HOLD
        base = 0.0 if control.current is None else control.current.level
        level = base if control.governed is None else control.governed
        self._metrics.observe_governor(armed, level, state.rung, state.pressure)


def check_told(governor: Governor | None, mode: str | None) -> None:
    """``InputError`` where a body names the governor of a server that has none."""
    if mode is not None and governor is None:
        raise InputError(
            "this server has no governor; start it with --governor observe or act, or leave "
            "'governor' out"
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
