"""Which cuts are compared: the command that decides each, as a user would type it.

``{model}``, ``{scores}`` and ``{out}`` stand for the source, its score bundle and the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Experts kept per layer, by reference model.
KEEPS = {"mixtral": (4, 6), "mixtral-2": (4, 6), "qwen2-moe": (12,)}
RANDOM = "random"
SEEDS = range(5)
DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math")
_RULES = {
    "naee, spread": ("--method", "naee", "--spread"),
    "naee": ("--method", "naee"),
    "reap, spread": ("--method", "reap", "--spread"),
    "reap": ("--method", "reap"),
    "naee, spread over domains": ("--method", "naee", "--spread", "domains"),
}


@dataclass(frozen=True)
class Run:
    """One row."""

    method: str
    keep: int
    seed: int
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its file is called."""
        words = self.method.replace(",", "").replace(" ", "-")
        return f"{words}-keep-{self.keep}-seed-{self.seed}"


def windows_of(windows: int) -> str:
    """``--data`` of as many windows of each domain."""
    return ",".join(f"builtin:{domain}:{windows}" for domain in DOMAINS)


def every_run(model: str) -> Iterator[Run]:
    """All rows of a reference model: the first rule, chance, then the other rules."""
    for keep in KEEPS[model]:
        first, *others = _RULES
        yield _scored(first, keep)
        for seed in SEEDS:
            options = ("--method", "random", "--seed", str(seed))
            yield Run(RANDOM, keep, seed, _decide(keep, *options))
        for name in others:
            yield _scored(name, keep)


def _scored(name: str, keep: int) -> Run:
    return Run(name, keep, 0, _decide(keep, *_RULES[name], "--scores", "{scores}"))


def _decide(keep: int, *options: str) -> tuple[str, ...]:
    return ("prune", "{model}", *options, "--keep", str(keep), "--plan-only", "-o", "{out}")
