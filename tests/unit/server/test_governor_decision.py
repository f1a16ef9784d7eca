"""The governor in simulation: no oscillation, never past the floor, disarmed if nothing helps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe_server.governor.decision import (
    MOST_PATIENCE_SECONDS,
    Objectives,
    State,
    decide,
    pressure_of,
)
from leanmoe_server.governor.ladder import Ladder, Lever, budget_rungs, level_rungs
from leanmoe_server.governor.observation import Observation
from tests.unit.server.simulated import DWELL, LADDER, Run, SimulatedServer, govern, steady

LOADS = json.loads((Path(__file__).parent / "data" / "loads.json").read_text())
OBJECTIVES = Objectives(ttft_seconds=1.0, itl_seconds=0.15, dwell_seconds=DWELL)
# At level 0 the simulated server answers a little more than 6 requests a second, at 1 12.
CAPACITY = 6.3


def reversals(run: Run) -> int:
    """How often a move down was followed by one up: the swings of an oscillation."""
    return sum(a.after < a.before and b.after > b.before for (_, a), (_, b) in pairwise(run.moves))


def within_objectives(server: SimulatedServer, since: float = 0.0) -> float:
    """The share of answers after ``since`` whose first token came in time."""
    firsts = [one.first_at - one.arrived for one in server.done if one.arrived >= since]
    return sum(first <= 1.0 for first in firsts) / len(firsts)


@pytest.mark.parametrize("rate", [1.0, 4.0, 6.0])
def test_a_load_that_the_server_carries_moves_nothing(rate: float) -> None:
    assert govern(SimulatedServer(steady(rate, 300)), OBJECTIVES, 300).moves == []


@pytest.mark.parametrize("rate", [1.1, 1.3, 1.5])
def test_an_overload_is_answered_in_time_and_settles(rate: float) -> None:
    server = SimulatedServer(steady(rate * CAPACITY, 900))
    run = govern(server, OBJECTIVES, 900)
    fixed = SimulatedServer(steady(rate * CAPACITY, 900))
    while fixed.now < 900:
        fixed.observe()
    assert within_objectives(server, since=120) > 0.85 > 0.3 > within_objectives(fixed, since=120)
    # Each swing waits four times as long as the one before: few, and fewer in the later half.
    assert reversals(run) <= 5
    late = [move for at, move in run.moves if at > 450]
    assert len(late) <= 4 and len(late) < len(run.moves) / 2


def test_a_fall_of_the_load_brings_the_level_back_and_idleness_at_once() -> None:
    busy = steady(9.0, 120)
    quiet = [(120 + at, *rest) for at, *rest in steady(1.0, 600)]
    run = govern(SimulatedServer([*busy, *quiet]), OBJECTIVES, 720)
    assert max(run.rungs) >= 3 and run.rungs[-1] == 0
    assert reversals(run) <= 1
    run = govern(SimulatedServer(busy), OBJECTIVES, 200)
    last, move = run.moves[-1]
    assert move.after == 0 and "idle" in move.reason and last < 150


@pytest.mark.parametrize("rate", [1.05, 1.5, 3.0])
@pytest.mark.parametrize("saves", [0.0, 0.02, -0.2])
def test_where_levels_save_nothing_it_disarms_itself_and_says_so(rate: float, saves: float) -> None:
    server = SimulatedServer(steady(rate * CAPACITY, 400), saves=saves)
    run = govern(server, OBJECTIVES, 400)
    assert run.states[-1].disarmed is not None and "shorter" in run.states[-1].disarmed
    assert run.rungs[-1] == 0 and max(run.rungs) == 1 and len(run.moves) == 2


@pytest.mark.parametrize("rate", [1.35, 1.5, 1.7])
def test_a_rung_that_saves_nothing_more_is_left_and_not_tried_again(rate: float) -> None:
    server = SimulatedServer(steady(rate * CAPACITY, 600), useful=0.5)
    run = govern(server, OBJECTIVES, 600)
    last, move = run.moves[-1]
    assert "shorter" in move.reason and last < 120
    assert run.rungs[-1] == move.after < max(run.rungs)
    assert run.states[-1].disarmed is None


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", sorted(LOADS))
def test_recorded_loads_do_not_make_it_oscillate(name: str, speed: float) -> None:
    recorded = LOADS[name]
    length = recorded[-1][0] + 1.0
    rounds = int(600 / length) + 1
    load = [((i * length + at) / speed, p, a) for i in range(rounds) for at, p, a in recorded]
    seconds = rounds * length / speed
    run = govern(SimulatedServer(load), OBJECTIVES, seconds)
    idle = sum("idle" in move.reason for _, move in run.moves)
    # Where a burst is over and the server idle, it starts anew: that is following, not swinging.
    assert reversals(run) <= 6 + idle
    assert len(run.moves) <= 30 + 8 * idle
    assert max(run.rungs, default=0) <= len(LADDER.levels)


@settings(max_examples=40)
@given(
    rate=st.floats(0.2, 30.0),
    saves=st.floats(-0.3, 0.7),
    seats=st.integers(2, 32),
    prompt=st.integers(1, 200),
    answer=st.integers(1, 60),
)
def test_any_constant_load_moves_it_a_bounded_number_of_times(
    rate, saves, seats, prompt, answer
) -> None:
    server = SimulatedServer(steady(rate, 120, prompt, answer), saves=saves, seats=seats)
    run = govern(server, OBJECTIVES, 120)
    assert all(0 <= rung <= len(LADDER.levels) for rung in run.rungs)
    assert reversals(run) <= 2 and len(run.moves) <= 12
    for (before, _), (after, move) in pairwise(run.moves):
        assert move.after == 0 or after - before >= DWELL - 1e-6


OBSERVATIONS = st.builds(
    Observation,
    seconds=st.floats(0.5, 5.0),
    running=st.integers(0, 64),
    waiting=st.integers(0, 500),
    kv_usage=st.floats(0.0, 1.0),
    first_tokens=st.integers(0, 50),
    ttft_seconds=st.none() | st.floats(0.0, 60.0),
    itl_seconds=st.none() | st.floats(0.0, 5.0),
    steps=st.integers(0, 200),
    tokens=st.integers(0, 5000),
    skipped_share=st.none() | st.floats(0.0, 1.0),
    distinct_experts=st.none() | st.floats(1.0, 64.0),
    bandwidth_share=st.none() | st.floats(0.0, 1.2),
)


@settings(max_examples=200)
@given(seen=st.lists(OBSERVATIONS, max_size=60), budgets=st.booleans())
def test_whatever_it_sees_it_stays_on_the_ladder_and_keeps_the_dwell_time(seen, budgets) -> None:
    ladder = Ladder(LADDER.levels, budget_rungs(64, 16) if budgets else ())
    state, since = State(), float("inf")
    for one in seen:
        before = state
        state, move = decide(state, one, OBJECTIVES, ladder)
        since += one.seconds
        assert 0 <= state.rung <= ladder.height(state.lever)
        assert state.patience <= MOST_PATIENCE_SECONDS
        assert (move is None) == (state.rung == before.rung)
        if before.disarmed is not None:
            assert move is None
        elif move is not None:
            assert move.after in (move.before - 1, move.before + 1, 0)
            assert move.after == 0 or since >= DWELL
            assert before.rung == 0 or state.lever is before.lever
            since = 0.0


def test_pressure_is_the_nearest_objective_and_counts_who_waits() -> None:
    seen = Observation(1.0, 4, 6, first_tokens=2, ttft_seconds=0.3, itl_seconds=0.03)
    assert pressure_of(seen, OBJECTIVES) == 3.0  # six wait, two begin a second
    assert pressure_of(seen, Objectives(None, 0.15)) == pytest.approx(0.2)
    full = Observation(1.0, 4, 1, kv_usage=0.99)
    assert pressure_of(full, Objectives(None, 0.15)) == 1.0
    assert pressure_of(Observation(1.0, 0, 0), OBJECTIVES) == 0.0
    assert pressure_of(Observation(1.0, 2, 0), OBJECTIVES) is None  # a step of many seconds


@pytest.mark.parametrize(
    ("share", "distinct", "lever"),
    [
        (0.8, 52.0, Lever.BUDGET),
        (0.3, 52.0, Lever.LEVELS),  # bound by computing
        (0.8, 40.0, Lever.LEVELS),  # the batch reads few experts: a budget would hardly bind
        (None, 52.0, Lever.LEVELS),
    ],
)
def test_a_budget_is_chosen_where_memory_bounds_a_large_batch(share, distinct, lever) -> None:
    ladder = Ladder(LADDER.levels, budget_rungs(56, 16))
    state = State()
    for _ in range(20):
        seen = Observation(
            *(1.0, 32, 20),
            itl_seconds=0.5,
            steps=10,
            tokens=320,
            skipped_share=0.0,
            distinct_experts=distinct,
            bandwidth_share=share,
        )
        state, move = decide(state, seen, OBJECTIVES, ladder)
        if move is not None:
            break
    assert (state.rung, state.lever) == (1, lever)


def test_rungs_lie_between_the_operator_s_level_and_the_floor(skip_model) -> None:
    assert level_rungs(0.0, 1.0, skip_model.curve) == (0.5, 1.0)
    assert level_rungs(0.5, 0.8, skip_model.curve) == (0.8,)
    assert level_rungs(0.0, 0.309, skip_model.curve) == (0.3,)
    assert level_rungs(0.8, 0.8, skip_model.curve) == ()
    assert level_rungs(0.0, 1.0, None) == (1.0,) and level_rungs(0.0, 0.9, None) == ()
    assert budget_rungs(64, 16) == (52, 40, 28, 16)
    assert budget_rungs(8, 8) == budget_rungs(8, 9) == ()
