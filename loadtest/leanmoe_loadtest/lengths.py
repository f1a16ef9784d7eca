"""Lengths of prompts and answers in tokens, drawn from a distribution."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from leanmoe.errors import InputError

MOST_TOKENS = 1_000_000
_GRAMMAR = "expected N, uniform:LOW,HIGH, normal:MEAN,SD or lognormal:MEDIAN,SIGMA"


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths; every draw is a whole number from 1 to a million."""

    kind: str
    first: float
    second: float = 0.0

    def draw(self, source: random.Random) -> int:
        """One length in tokens."""
        value = self.first
        if self.kind == "uniform":
            value = source.randint(int(self.first), int(self.second))
        elif self.kind == "normal":
            value = source.gauss(self.first, self.second)
        elif self.kind == "lognormal":
            value = self.first * math.exp(source.gauss(0.0, self.second))
        return min(max(round(value), 1), MOST_TOKENS)


def parse_lengths(text: str, where: str) -> Lengths:
    """``128``, ``uniform:64,512``, ``normal:512,128`` or ``lognormal:256,0.8``."""
    kind, colon, rest = text.rpartition(":")
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        raise InputError(f"{where} is {text!r}, {_GRAMMAR}") from None
    wanted = 2 if colon else 1
    if kind not in ("", "uniform", "normal", "lognormal") or len(numbers) != wanted:
        raise InputError(f"{where} is {text!r}, {_GRAMMAR}")
    _check(text, where, kind, numbers)
    return Lengths(kind or "constant", *numbers)


def _check(text: str, where: str, kind: str, numbers: list[float]) -> None:
    if not 1 <= numbers[0] <= MOST_TOKENS:
        raise InputError(f"{where} is {text!r}, expected a length from 1 to {MOST_TOKENS} tokens")
    if kind in ("normal", "lognormal") and not 0 <= numbers[1] <= MOST_TOKENS:
        raise InputError(f"{where} is {text!r}, expected a spread of at least 0")
    if kind == "uniform" and not numbers[0] <= numbers[1] <= MOST_TOKENS:
        raise InputError(f"{where} is {text!r}, expected LOW up to HIGH")
    if kind in ("", "uniform") and any(number != int(number) for number in numbers):
        raise InputError(f"{where} is {text!r}, expected whole numbers of tokens")
