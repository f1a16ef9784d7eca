"""A server in numbers, for the governor: arrivals in, an observation a second out. No clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from leanmoe_server.governor.decision import Move, Objectives, State, decide
from leanmoe_server.governor.ladder import Ladder, Lever
from leanmoe_server.governor.observation import Observation

DWELL = 10.0
LADDER = Ladder((0.25, 0.5, 0.75, 1.0))
Arrival = tuple[float, int, int]  # seconds, tokens of the prompt, tokens of the answer


@dataclass
class Answer:
    """One request: its level from the start, what is left of prompt and answer."""

    arrived: float
    prompt: int
    left: int
    level: float
    first_at: float | None = None
    last_at: float = 0.0


@dataclass
class SimulatedServer:
    """Steps of ``fixed`` seconds and ``per_token`` for each token, shorter by ``saves`` at level 1.

    Past level ``useful`` nothing more is saved. At most ``seats`` answers run; a step holds at
    most ``budget`` tokens, answers before prompts.
    """

    arrivals: Sequence[Arrival]
    saves: float = 0.5
    fixed: float = 0.02
    per_token: float = 0.002
    seats: int = 16
    budget: int = 64
    useful: float = 1.0
    now: float = 0.0
    level: float = 0.0
    waiting: deque[Answer] = field(default_factory=deque)
    running: list[Answer] = field(default_factory=list)
    done: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._coming = deque(sorted(self.arrivals))
        self._steps, self._tokens, self._skipped = 0, 0, 0.0
        self._firsts: list[float] = []
        self._gaps: list[float] = []

    def observe(self, seconds: float = 1.0) -> Observation:
        """Run for ``seconds`` and say what happened."""
        self._steps, self._tokens, self._firsts, self._gaps = 0, 0, [], []
        self._skipped = 0.0
        end = self.now + seconds
        while self.now < end:
            self._admit()
            if not self.running:
                self.now = min(end, self._coming[0][0]) if self._coming else end
                continue
            self._step()
        self._admit()
        return Observation(
            seconds=seconds,
            running=len(self.running),
            waiting=len(self.waiting),
            first_tokens=len(self._firsts),
            ttft_seconds=_mean(self._firsts),
            itl_seconds=_mean(self._gaps),
            steps=self._steps,
            tokens=self._tokens,
            skipped_share=self._skipped / self._tokens / 2 if self._tokens else None,
        )

    def _admit(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            at, prompt, answer = self._coming.popleft()
            self.waiting.append(Answer(at, prompt, answer, self.level))
        while self.waiting and len(self.running) < self.seats:
            self.running.append(self.waiting.popleft())

    def _step(self) -> None:
        room, work = self.budget, []
        for one in sorted(self.running, key=lambda one: one.prompt > 0):
            tokens = min(one.prompt or 1, room)
            room -= tokens
            work.append((one, tokens))
        tokens = sum(count for _, count in work)
        level = sum(one.level * count for one, count in work) / tokens
        saving = sum(min(one.level, self.useful) * count for one, count in work) / tokens
        self.now += (self.fixed + self.per_token * tokens) * (1.0 - self.saves * saving)
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        self._skipped += level * tokens
        for one, count in work:
            self._advance(one, count)

    def _advance(self, one: Answer, count: int) -> None:
        if not count:
            return
        if one.prompt > count:
            one.prompt -= count
            return
        one.prompt = 0
        if one.first_at is None:
            one.first_at = self.now
            self._firsts.append(self.now - one.arrived)
        else:
            self._gaps.append(self.now - one.last_at)
        one.last_at = self.now
        one.left -= 1
        if one.left <= 0:
            self.running.remove(one)
            self.done.append(one)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass
class Run:
    """What the governor did: (second, move) and the rung at each second."""

    moves: list[tuple[float, Move]]
    rungs: list[int]
    states: list[State]


def govern(
    server: SimulatedServer, objectives: Objectives, seconds: float, ladder: Ladder = LADDER
) -> Run:
    """The governor on ``server``: new answers get the level of its rung."""
    state, run = State(), Run([], [], [])
    for seen in _observations(server, seconds):
        state, move = decide(state, seen, objectives, ladder)
        if move is not None:
            run.moves.append((server.now, move))
        assert state.lever is Lever.LEVELS
        server.level = ladder.levels[state.rung - 1] if state.rung else 0.0
        run.rungs.append(state.rung)
        run.states.append(state)
    return run


def _observations(server: SimulatedServer, seconds: float) -> Iterator[Observation]:
    while server.now < seconds:
        yield server.observe()


def steady(rate: float, seconds: float, prompt: int = 32, answer: int = 32) -> list[Arrival]:
    """Arrivals as even as can be."""
    return [(i / rate, prompt, answer) for i in range(int(rate * seconds))]
