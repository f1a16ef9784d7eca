"""What the governor does about what it sees: a function, without a clock and without effects.

It goes up one rung while the load presses against the objectives, and only where the rung it
stands on made engine steps shorter than the one below; down while the load is low, and at once
when the server is idle. A rung that saves nothing is left and not tried again; when the first
rung of every lever saves nothing, the governor disarms itself.

Why it does not oscillate: between two moves lies a dwell time, the pressure is smoothed, the
thresholds of up and down lie apart, a step down is taken only where its forecast stays below the
upper one, and each time a step down had to be taken back the patience before the next grows
fourfold, up to an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from leanmoe_server.governor.ladder import Ladder, Lever
from leanmoe_server.governor.observation import Observation
from leanmoe_server.governor.work import NOTHING, Work

HIGH, LOW = 0.85, 0.5
# Past this the memory for keys and values holds back whoever waits.
FULL = 0.95
LEAST_GAIN = 0.01
# A budget saves reading weights: it pays where that is most of a step.
MEMORY_BOUND = 0.6
BINDING = 1.1
MOST_PATIENCE_SECONDS = 3600.0
# In dwell times: until most running answers have the new level, what is measured then before
# the next step up, until a rung without a gain is left, and before a step down.
SETTLED, _MEASURED, _JUDGED, _PATIENCE = 0.75, 0.5, 3.0, 3.0


@dataclass(frozen=True)
class Objectives:
    """Mean seconds to the first token and between tokens that are to hold; moves are
    ``dwell_seconds`` apart or more."""

    ttft_seconds: float | None
    itl_seconds: float | None
    dwell_seconds: float = 10.0


@dataclass(frozen=True)
class State:
    """What the governor remembers from one look to the next.

    ``here`` is the work on this rung and ``below`` that on the one below when it was left.
    ``ceilings`` are the highest rungs of levers that were found to end early.
    """

    rung: int = 0
    lever: Lever = Lever.LEVELS
    pressure: float = 0.0
    since_move: float = float("inf")
    idle_for: float = 0.0
    patience: float = 0.0
    went_down: bool = False
    here: Work = NOTHING
    below: Work | None = None
    ceilings: Mapping[Lever, int] = field(default_factory=dict)
    disarmed: str | None = None


@dataclass(frozen=True)
class Move:
    """From one rung to another, and why, for the log and the audit trail."""

    before: int
    after: int
    reason: str


def pressure_of(seen: Observation, objectives: Objectives) -> float | None:
    """How near the server is to breaking an objective; 1 is at it.

    ``None`` where requests run, none wait and no token was seen: a step takes longer than that.
    Who waits has no first token yet: their time to it is forecast from how fast answers begin.
    """
    silent = seen.itl_seconds is None and seen.ttft_seconds is None
    if silent and seen.running and not seen.waiting:
        return None
    parts = [0.0]
    if objectives.itl_seconds and seen.itl_seconds is not None:
        parts.append(seen.itl_seconds / objectives.itl_seconds)
    if objectives.ttft_seconds:
        # None began in the interval: at best one will in the next.
        queued = seen.waiting * seen.seconds / max(seen.first_tokens, 1)
        parts.append(max(seen.ttft_seconds or 0.0, queued) / objectives.ttft_seconds)
    if seen.waiting and seen.kv_usage >= FULL:
        parts.append(1.0)
    return max(parts)


def decide(
    state: State, seen: Observation, objectives: Objectives, ladder: Ladder
) -> tuple[State, Move | None]:
    """The state after ``seen``, and the move to make now, if there is one."""
    state = _calmed(_observed(state, seen, objectives))
    if state.disarmed is not None:
        return state, None
    if state.rung and state.idle_for >= objectives.dwell_seconds / 2:
        return _moved(replace(state, went_down=False), 0, "the server is idle", patience=0.0)
    if state.rung and _saves_nothing(state, objectives):
        return _capped(state, ladder)
    if _must_rise(state, objectives):
        return _risen(state, seen, ladder)
    if _may_fall(state, seen, objectives):
        said = f"the load is at {state.pressure:.0%} of the objectives"
        return _moved(replace(state, went_down=True), state.rung - 1, said)
    return state, None


def _observed(state: State, seen: Observation, objectives: Objectives) -> State:
    dwell = objectives.dwell_seconds
    weight, now = min(1.0, seen.seconds / (dwell / 3)), pressure_of(seen, objectives)
    pressure = state.pressure if now is None else now
    since = state.since_move + seen.seconds
    # Answers that began before a move go on as they began.
    settled = since >= SETTLED * dwell
    return replace(
        state,
        pressure=state.pressure + weight * (pressure - state.pressure),
        since_move=since,
        idle_for=state.idle_for + seen.seconds if seen.idle else 0.0,
        patience=max(state.patience, _PATIENCE * dwell),
        here=state.here.after(seen, 2 * dwell) if settled else state.here,
    )


def _calmed(state: State) -> State:
    """A long calm on the lowest rung ends the memory of steps down that did not last."""
    calm = not state.rung and state.pressure < LOW and state.since_move >= state.patience
    return replace(state, went_down=False, patience=0.0) if calm else state


def _moved(
    state: State, rung: int, reason: str, patience: float | None = None
) -> tuple[State, Move]:
    after = replace(
        state,
        rung=rung,
        since_move=0.0,
        patience=state.patience if patience is None else patience,
        here=NOTHING,
        below=state.here if rung > state.rung else None,
    )
    return after, Move(state.rung, rung, reason)


def _gain(state: State) -> tuple[float, float] | None:
    return None if state.below is None else state.here.gain_over(state.below)


def _saves_nothing(state: State, objectives: Objectives) -> bool:
    gain = _gain(state)
    judged = state.since_move >= _JUDGED * objectives.dwell_seconds
    return judged and gain is not None and sum(gain) / 2 < LEAST_GAIN


def _capped(state: State, ladder: Ladder) -> tuple[State, Move]:
    """Back to the rung below, never to come here again; without any rung left, disarmed."""
    ceilings = {**state.ceilings, state.lever: state.rung - 1}
    after, move = _moved(
        replace(state, ceilings=ceilings), state.rung - 1, "engine steps did not get shorter"
    )
    if any(_height(after, ladder, lever) for lever in Lever):
        return after, move
    said = "skipping more does not make engine steps shorter at this load"
    return replace(after, disarmed=said), move


def _height(state: State, ladder: Ladder, lever: Lever) -> int:
    height = ladder.height(lever)
    return min(height, state.ceilings.get(lever, height))


def _must_rise(state: State, objectives: Objectives) -> bool:
    if state.pressure <= HIGH or state.since_move < objectives.dwell_seconds:
        return False
    measured = _MEASURED * objectives.dwell_seconds
    if state.rung == 0 or state.below is None:
        # What the next rung will be measured against.
        return state.here.tells and state.here.seconds >= measured
    gain = _gain(state)
    return gain is not None and gain[0] >= LEAST_GAIN and state.here.seconds >= measured


def _risen(state: State, seen: Observation, ladder: Ladder) -> tuple[State, Move | None]:
    lever = state.lever if state.rung else _lever(state, seen, ladder)
    if state.rung >= _height(state, ladder, lever):
        return state, None
    # A step down that did not last: wait longer before the next.
    patience = 4 * state.patience if state.went_down else state.patience
    patience = min(patience, MOST_PATIENCE_SECONDS)
    state = replace(state, lever=lever, went_down=False)
    said = f"the load is at {state.pressure:.0%} of the objectives"
    return _moved(state, state.rung + 1, said, patience)


def _lever(state: State, seen: Observation, ladder: Ladder) -> Lever:
    """A budget where reading weights bounds a step and the batch reads more than it would leave."""
    share, distinct = seen.bandwidth_share, seen.distinct_experts
    binds = distinct is not None and ladder.budgets and distinct >= BINDING * ladder.budgets[0]
    bound = share is not None and share >= MEMORY_BOUND
    if _height(state, ladder, Lever.BUDGET) and binds and bound:
        return Lever.BUDGET
    return Lever.LEVELS


def _may_fall(state: State, seen: Observation, objectives: Objectives) -> bool:
    if not state.rung or seen.waiting or state.pressure >= LOW:
        return False
    if state.since_move < state.patience:
        return False
    _, most = _gain(state) or (0.0, 0.0)
    return state.pressure < HIGH * (1.0 - most)
