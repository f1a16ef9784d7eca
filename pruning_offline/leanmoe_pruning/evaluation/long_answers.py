"""Long answers: how long they are, whether they end by themselves, how much they repeat.

Of two models' answers to the same prompts the differences are paired prompt by prompt: means with
Student's interval, shares with Newcombe's. Lengths stop at the limit, so a mean length is of
answers as a user with that limit gets them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leanmoe.stats import wilson
from leanmoe_pruning.data.tasks.open_prompts import OpenPrompt, digest_of
from leanmoe_pruning.evaluation.bounds import WindowMean
from leanmoe_pruning.evaluation.intervals import Paired
from leanmoe_pruning.evaluation.repetition import ends_in_loop, repeated_share

MEANS = ("tokens", "repeated")
SHARES = ("ended", "loops")
_WHOLE = "all"


@dataclass(frozen=True)
class LongQuestions:
    """Prompts answered with up to ``limit`` tokens; ``seed`` is that of sampling."""

    prompts: Sequence[OpenPrompt]
    limit: int
    temperature: float
    seed: int

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same for two models to be compared."""
        told = {"limit": self.limit, "temperature": self.temperature, "seed": self.seed}
        return {"prompts": digest_of(self.prompts), **told}

    def report(
        self, mine: Sequence[LongAnswer], theirs: Sequence[LongAnswer] | None
    ) -> dict[str, Any]:
        """What the answers are like, and the answers."""
        return {"long": {**self.asked, **long_report(mine, theirs)}}


@dataclass(frozen=True)
class LongAnswer:
    """One answer; ``tokens`` are counted, ``ended`` is false where the limit cut it off."""

    prompt: str
    group: str
    text: str
    tokens: int
    ended: bool
    repeated: float
    loops: bool

    @classmethod
    def of(
        cls, prompt: str, group: str, text: str, tokens: Sequence[Hashable], ended: bool
    ) -> LongAnswer:
        share, loop = repeated_share(tokens), ends_in_loop(tokens)
        return cls(prompt, group, text, len(tokens), ended, share, loop)


def long_report(mine: Sequence[LongAnswer], theirs: Sequence[LongAnswer] | None) -> dict[str, Any]:
    """Figures of all answers and of every group, and the answers; differences are mine less theirs.

    Both answer the same prompts in the same order.
    """
    groups = list(dict.fromkeys(one.group for one in mine))
    names = [_WHOLE, *(groups if len(groups) > 1 else [])]
    return {
        "groups": {name: _figures(_of(mine, name), _of(theirs, name)) for name in names},
        "answers": [asdict(one) for one in mine],
    }


def _of(answers: Sequence[LongAnswer] | None, group: str) -> list[LongAnswer] | None:
    if answers is None:
        return None
    return [one for one in answers if group in (_WHOLE, one.group)]


def _figures(mine: list[LongAnswer] | None, theirs: list[LongAnswer] | None) -> dict[str, Any]:
    assert mine is not None
    found: dict[str, Any] = {"answers": len(mine)}
    found |= {name: _mean([getattr(one, name) for one in mine]) for name in MEANS}
    found |= {name: _share([getattr(one, name) for one in mine]) for name in SHARES}
    if theirs is not None:
        found["against"] = _differences(mine, theirs)
    return found


def _differences(mine: list[LongAnswer], theirs: list[LongAnswer]) -> dict[str, Any]:
    pairs = list(zip(mine, theirs, strict=True))
    found: dict[str, Any] = {
        name: _mean([getattr(one, name) - getattr(two, name) for one, two in pairs])
        for name in MEANS
    }
    for name in SHARES:
        paired = Paired.of([getattr(a, name) for a in mine], [getattr(b, name) for b in theirs])
        found[name] = _range(paired.difference, paired.interval())
    return {**found, "same_answer": sum(a.text == b.text for a, b in pairs) / len(pairs)}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    mean = WindowMean.of([float(value) for value in values], [1] * len(values))
    known = mean.standard_error is not None
    return _range(mean.mean, mean.interval() if known else (None, None))


def _share(values: Sequence[bool]) -> dict[str, Any]:
    return _range(sum(values) / len(values), wilson(sum(values), len(values)))


def _range(mean: float, interval: tuple[float | None, float | None]) -> dict[str, Any]:
    return {"mean": mean, "low": interval[0], "high": interval[1]}
