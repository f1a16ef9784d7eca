"""When an open loop sends: constant, Poisson, ramp, step and burst arrivals.

A Poisson process of a changing rate is one of rate 1 whose time is bent by the inverse of the
summed rate; the same holds for every kind here that is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanmoe.errors import InputError
from leanmoe.files.digest import bytes_digest

MOST_REQUESTS = 1_000_000
_GRAMMAR = (
    "expected constant:RATE, poisson:RATE, ramp:FROM-TO, step:RATE,RATE,…, burst:COUNT/SECONDS "
    "or trace:FILE, rates in requests per second"
)


@dataclass(frozen=True)
class Arrivals:
    """A kind of arrivals and its numbers: rates, or count and seconds of a burst."""

    kind: str
    numbers: tuple[float, ...]

    def times(self, duration: float, seed: int) -> list[float]:
        """Seconds after the start, sorted, each below ``duration``; the same for one seed."""
        expected = self._expected(duration)
        if expected > MOST_REQUESTS:
            raise InputError(
                f"the arrivals ask for about {expected:.3g} requests, more than {MOST_REQUESTS}; "
                "lower the rate or the duration"
            )
        if self.kind == "constant":
            return _every(1 / self.numbers[0], duration, 1)
        if self.kind == "burst":
            count, seconds = self.numbers
            return _every(seconds, duration, int(count))
        return _poisson(_pieces(self, duration), seed)

    def _expected(self, duration: float) -> float:
        if self.kind == "burst":
            return self.numbers[0] * math.ceil(duration / self.numbers[1])
        return sum(piece.area for piece in _pieces(self, duration))


@dataclass(frozen=True)
class _Piece:
    """A stretch of time over which the rate goes evenly from ``low`` to ``high``."""

    start: float
    length: float
    first: float
    last: float

    @property
    def area(self) -> float:
        return self.length * (self.first + self.last) / 2

    def invert(self, areas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Times at which the summed rate since ``start`` reaches ``areas``."""
        slope = (self.last - self.first) / self.length
        root = np.sqrt(np.maximum(self.first**2 + 2 * areas * slope, 0.0))
        return np.asarray(self.start + 2 * areas / (self.first + root))


def parse_arrivals(text: str) -> Arrivals:
    """``poisson:4`` and the like; ``InputError`` says what was expected."""
    kind, _, rest = text.partition(":")
    separators = {"constant": None, "poisson": None, "ramp": "-", "step": ",", "burst": "/"}
    if kind not in separators:
        raise InputError(f"arrivals are {text!r}, {_GRAMMAR}")
    parts = rest.split(separators[kind]) if separators[kind] else [rest]
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        raise InputError(f"arrivals are {text!r}, {_GRAMMAR}") from None
    _check(text, kind, numbers)
    return Arrivals(kind, numbers)


def _check(text: str, kind: str, numbers: tuple[float, ...]) -> None:
    if kind in ("ramp", "burst") and len(numbers) != 2:
        raise InputError(f"arrivals are {text!r}, {_GRAMMAR}")
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise InputError(f"arrivals are {text!r}, expected numbers of at least 0")
    if kind == "burst":
        count, seconds = numbers
        if count < 1 or count != int(count) or seconds < 1e-3:
            raise InputError(
                f"arrivals are {text!r}, expected a whole COUNT of at least 1 every SECONDS above 0"
            )
    elif not any(numbers):
        raise InputError(f"arrivals are {text!r}, a rate of 0 sends nothing; give one above 0")


def _every(seconds: float, duration: float, count: int) -> list[float]:
    moments = np.arange(math.ceil(duration / seconds)) * seconds
    return [float(t) for t in np.repeat(moments[moments < duration], count)]


def _pieces(arrivals: Arrivals, duration: float) -> list[_Piece]:
    rates = arrivals.numbers
    if arrivals.kind == "ramp":
        return [_Piece(0.0, duration, rates[0], rates[1])]
    length = duration / len(rates)
    return [_Piece(i * length, length, rate, rate) for i, rate in enumerate(rates)]


def _poisson(pieces: list[_Piece], seed: int) -> list[float]:
    units = _unit_process(sum(piece.area for piece in pieces), seed)
    times, before = [], 0.0
    for piece in pieces:
        inside = units[(units >= before) & (units < before + piece.area)]
        times.append(piece.invert(inside - before))
        before += piece.area
    return [float(t) for t in np.concatenate(times)]


def _unit_process(total: float, seed: int) -> NDArray[np.float64]:
    """A Poisson process of rate 1 up to ``total``."""
    digest = bytes_digest([f"arrivals {seed}".encode()])
    random = np.random.default_rng(int(digest.removeprefix("sha256:"), 16))
    enough = int(total + 10 * math.sqrt(total) + 20)
    units = np.cumsum(random.exponential(size=enough))
    while units[-1] < total:
        units = np.concatenate([units, units[-1] + np.cumsum(random.exponential(size=enough))])
    return units[units < total]
