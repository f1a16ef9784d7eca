"""What each request had routed and skipped, so that a cheaper answer can be priced.

Layers add each token's skipped assignments to one buffer of the step; before the next step they
are booked on the requests whose tokens those were. While nothing can be skipped nothing is booked:
a change of the policy computes running requests anew, and their accounts begin there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe_runtime.requests import Batch, Counts

# Steps that a device may be behind the host: vLLM schedules one or two ahead.
READ_BEHIND = 3
# Ended requests that nobody asked about are kept up to so many.
_KEPT = 1024
_FEW = 64
# vLLM puts the number of a sample before a request's name and eight random characters behind it.
_SAMPLE = re.compile(r"^\d+_")
_RANDOM = len("-01234567")
# Each of several prompts, and each turn of a response that calls tools, has its number.
_PART = re.compile(r"^(cmpl-.+)-\d+$|^(resp_.+)_\d+$")


class Reading(Protocol):
    """A step's skipped assignments on their way to the host."""

    def wait(self) -> NDArray[np.int32]:
        """One number for each token of the step."""


class SkippedTokens(Protocol):
    """Where layers count a step's skipped assignments, token by token."""

    def begin(self, tokens: int) -> None:
        """Zero for each of so many tokens."""

    def end(self) -> Reading:
        """What was counted since ``begin``."""


class HostSkipped:
    """On the host: layers write, and the numbers are there at once."""

    def __init__(self) -> None:
        self.skipped_T: torch.Tensor | None = None  # int32, of the step that runs

    def begin(self, tokens: int) -> None:
        self.skipped_T = torch.zeros(tokens, dtype=torch.int32, device="cpu")

    def end(self) -> Reading:
        counted, self.skipped_T = self.skipped_T, None
        assert counted is not None
        return _Known(counted.numpy())


class _Known(NamedTuple):
    skipped_T: NDArray[np.int32]

    def wait(self) -> NDArray[np.int32]:
        return self.skipped_T


class _Step(NamedTuple):
    """A step that ran or runs: the accounts its tokens are booked on, -1 for nobody's."""

    number: int
    places_R: NDArray[np.int64]
    tokens_R: Counts


class _Ended(NamedTuple):
    """The account of a request that ended before that step."""

    place: int
    step: int


class Ran(NamedTuple):
    """A request's tokens that ran through the model, and its assignments that were skipped."""

    tokens: int
    skipped: int


class Tally:
    """Accounts of running requests, and of those that ended lately."""

    def __init__(self, counted: SkippedTokens) -> None:
        self._counted = counted
        self._place_of: dict[str, int] = {}
        self._ended: dict[str, _Ended] = {}
        self._free: list[int] = []
        self._tokens = np.zeros(0, dtype=np.int64)
        self._skipped = np.zeros(0, dtype=np.int64)
        self._number = 0
        self._running: _Step | None = None
        # Steps that ran and whose numbers are on their way from a device.
        self._counting: deque[tuple[_Step, Reading]] = deque()

    def begin_step(self, scheduled: Any, batch: Batch, skips: bool) -> None:
        """Close the step before and open the next; ``skips``: assignments of it may be left out."""
        self._end_step()
        self._book(READ_BEHIND)
        self._forget(scheduled.finished_req_ids, batch)
        if not skips and not self._place_of:
            return
        if skips:
            self._open(batch)
        places = (self._place_of.get(name, -1) for name in batch.names)
        places_R = np.fromiter(places, dtype=np.int64, count=len(batch.names))
        self._number += 1
        self._running = _Step(self._number, places_R, batch.tokens_R.copy())
        self._counted.begin(int(batch.tokens_R.sum()))

    def _end_step(self) -> None:
        if self._running is not None:
            self._counting.append((self._running, self._counted.end()))
            self._running = None

    def _book(self, behind: int = 0) -> None:
        """Book all steps that ran but for the last so many, whose device may be at work yet."""
        while len(self._counting) > behind:
            (_, places_R, tokens_R), reading = self._counting.popleft()
            until_T = np.concatenate(([0], np.cumsum(reading.wait(), dtype=np.int64)))
            ends_R = np.cumsum(tokens_R)
            held_R = places_R >= 0
            skipped_R = until_T[ends_R] - until_T[ends_R - tokens_R]
            self._tokens[places_R[held_R]] += tokens_R[held_R]
            self._skipped[places_R[held_R]] += skipped_R[held_R]

    def take(self, names: Iterable[str]) -> dict[str, Ran]:
        """The accounts of clients' requests, closed; without those that cannot be told apart."""
        self._end_step()
        self._book()
        wanted, found = set(names), dict[str, list[str]]()
        for name in [*self._place_of, *self._ended]:
            known = next((one for one in _clients_names(name) if one in wanted), None)
            if known is not None:
                found.setdefault(known, []).append(name)
        closed = {name: [self._close(one) for one in held] for name, held in found.items()}
        return {name: _sum(closed[name]) for name in closed if _differ(found[name])}

    def _open(self, batch: Batch) -> None:
        for name in batch.names:
            if name in self._place_of:
                continue
            ended = self._ended.pop(name, None)  # by a preemption, if at all
            if ended is not None:
                self._place_of[name] = ended.place
                continue
            place = self._free.pop() if self._free else self._grow()
            self._place_of[name] = place
            self._tokens[place] = self._skipped[place] = 0

    def _grow(self) -> int:
        held = len(self._tokens)
        size = max(2 * held, _FEW)
        self._tokens, self._skipped = (
            np.resize(one, size) for one in (self._tokens, self._skipped)
        )
        self._free = list(range(held + 1, size))
        return held

    def _forget(self, finished: Iterable[str], batch: Batch) -> None:
        for name in finished:
            if name in self._place_of:
                self._end(name)
        # A request that ends in a step without tokens is not heard of here.
        if len(self._place_of) > len(batch.names):
            for name in [one for one in self._place_of if one not in batch.alive]:
                self._end(name)

    def _end(self, name: str) -> None:
        self._ended[name] = _Ended(self._place_of.pop(name), self._number)
        if len(self._ended) > _KEPT:
            oldest = next(iter(self._ended))
            if self._counting and self._counting[0][0].number <= self._ended[oldest].step:
                self._book()
            self._free.append(self._ended.pop(oldest).place)

    def _close(self, name: str) -> Ran:
        ended = self._ended.pop(name, None)
        place = self._place_of.pop(name) if ended is None else ended.place
        self._free.append(place)
        return Ran(int(self._tokens[place]), int(self._skipped[place]))


def _clients_names(name: str) -> Iterator[str]:
    """What a client may know a request by that the engine calls ``name``."""
    known = _external(name)
    yield known
    part = _PART.match(known)
    if part is not None:
        yield part[1] or part[2]


def _external(name: str) -> str:
    return _SAMPLE.sub("", name)[:-_RANDOM]


def _differ(names: Sequence[str]) -> bool:
    """Whether each is another part of one request: no second one has the same name."""
    parts = [(name[: len(name) - len(_SAMPLE.sub("", name))], _external(name)) for name in names]
    return len(set(parts)) == len(parts)


def _sum(accounts: Iterable[Ran]) -> Ran:
    tokens, skipped = zip(*accounts, strict=True)
    return Ran(sum(tokens), sum(skipped))
