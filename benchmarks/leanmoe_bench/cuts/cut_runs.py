"""Which cuts are compared: the command that decides each, as a user would type it.

``{model}`` and ``{out}`` stand for the source and the plan, ``{predictions}`` and ``{text}`` for
its score bundles, by what the effects of experts in them are on, ``{scores}`` for any of them.
A sample is one of several equal parts of the calibration windows: what a method decides from each
shows how much of its result is the choice of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from leanmoe_bench.cuts.pairs import APART, TOGETHER

# Experts kept per layer, by reference model.
KEEPS = {"mixtral": (4, 6), "mixtral-2": (4, 6), "mixtral-3": (4, 6), "qwen2-moe": (12,)}
RANDOM = "random"
SEEDS = range(5)
# Windows of one step of distillation.
HEALED_AT_ONCE = 4
# Of the model whose experts are pairs, and decided here instead of by a command.
PAIRED = (APART, TOGETHER)
DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math")
# Of names for the same ranking one: man is ean.
_RANKINGS = ("frequency", "soft-activation", "ean", "msan", "weighted-ean", "coverage", "pairwise")
_BY_EFFECTS, _BY_TEXT = "naee, spread", "naee, spread, by text"
# What experts do to predictions and to the log loss of the text decides these.
_EFFECTS = {_BY_EFFECTS: "{predictions}", _BY_TEXT: "{text}"}
_RULES = {
    _BY_EFFECTS: ("--method", "naee", "--spread"),
    _BY_TEXT: ("--method", "naee", "--spread"),
    "naee": ("--method", "naee"),
    "naee, adaptive": ("--method", "naee", "--budget", "adaptive"),
    "naee, spread over experts": ("--method", "naee", "--spread", "experts"),
    "naee, spread over domains": ("--method", "naee", "--spread", "domains"),
    "reap, spread": ("--method", "reap", "--spread"),
    "reap": ("--method", "reap"),
    **{name: ("--method", name) for name in _RANKINGS},
    **{f"{name}, spread": ("--method", name, "--spread") for name in ("coverage", "frequency")},
    "m-smoe": ("--method", "m-smoe"),
}
# What merges experts leaves other weights than the source's.
_MERGING = ("m-smoe",)


@dataclass(frozen=True)
class Run:
    """One row."""

    method: str
    keep: int
    seed: int
    command: tuple[str, ...]
    # Which part of the calibration windows it is decided from; 0 is all of them.
    sample: int = 0
    # Steps of router distillation after the cut.
    heal: int = 0
    # Whether the command writes the model to judge instead of a plan.
    writes: bool = False

    @property
    def name(self) -> str:
        """What its file is called."""
        words = self.method.replace(",", "").replace(" ", "-")
        part = f"-sample-{self.sample}" if self.sample else ""
        healed = f"-healed-{self.heal}" if self.heal else ""
        return f"{words}-keep-{self.keep}-seed-{self.seed}{part}{healed}"

    @property
    def healing(self) -> tuple[str, ...]:
        """The command that distils its routers, on as much text as the steps take."""
        data = windows_of(-(-self.heal * HEALED_AT_ONCE // len(DOMAINS)))
        how = ("--train", "routers", "--steps", str(self.heal), "--batch", str(HEALED_AT_ONCE))
        return ("distill", "{cut}", "--teacher", "{model}", *how, "--data", data, "-o", "{out}")


def windows_of(windows: int) -> str:
    """``--data`` of as many windows of each domain."""
    return ",".join(f"builtin:{domain}:{windows}" for domain in DOMAINS)


def every_run(model: str, samples: int = 0, heal: int = 0) -> Iterator[Run]:
    """All rows of a reference model: first rule, chance, other rules, samples, healing."""
    for keep in KEEPS[model]:
        first, *others = _RULES
        yield _scored(first, keep)
        for seed in SEEDS:
            options = ("--method", "random", "--seed", str(seed))
            yield Run(RANDOM, keep, seed, _decide(keep, *options))
        for name in others:
            yield _scored(name, keep)
        for sample in range(1, samples + 1):
            for name in _RULES:
                yield _scored(name, keep, sample)
        if heal:
            yield replace(_scored(first, keep), heal=heal)
        if model == "qwen2-moe":
            yield from (Run(name, keep, seed, ()) for name in PAIRED for seed in SEEDS)


def _scored(name: str, keep: int, sample: int = 0) -> Run:
    scores = _EFFECTS.get(name, "{scores}")
    # As published: rules that know nothing of super experts may take them.
    command = _decide(keep, *_RULES[name], "--super-experts", "warn", "--scores", scores)
    writes = name in _MERGING
    if writes:
        command = tuple(part for part in command if part != "--plan-only")
    return Run(name, keep, 0, command, sample, writes=writes)


def _decide(keep: int, *options: str) -> tuple[str, ...]:
    return ("prune", "{model}", *options, "--keep", str(keep), "--plan-only", "-o", "{out}")
