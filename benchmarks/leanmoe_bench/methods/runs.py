"""Which cuts are compared: the command line of each, as a user would type it.

``{model}``, ``{scores}``, ``{work}`` and ``{out}`` stand for the source, its score bundle, a
folder and the checkpoint to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

KEEPS = (6, 4, 2)
RANDOM_SEEDS = (0, 1, 2)
# Half of the reference model's layers that CD-MoE condenses, and fewer.
CONDENSED = (5, 10, 15)
_SCORED = ("naee", "frequency", "reap", "soft-activation", "ean", "weighted-ean", "m-smoe")
_WEIGHTS = ("moe-pruner", "wanda", "magnitude", "sparsegpt")
_PATTERNS = {"50 %": ("--sparsity", "0.5"), "2:4": ("--pattern", "2:4")}
# The paper's 40 + 160 would take hours here.
_SEARCH = ("--prune-evaluations", "40", "--evaluations", "80")


@dataclass(frozen=True)
class Calibration:
    """What methods decide from: a mix, one domain of it, and tasks of those that search."""

    mix: str
    domain: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Judging:
    """What every result is judged by."""

    data: str
    tasks: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--data", self.data, "--tasks", self.tasks)


@dataclass(frozen=True)
class Run:
    """One row: ``commands`` end in a checkpoint at ``{out}``."""

    method: str
    budget: str
    calibration: str
    commands: tuple[tuple[str, ...], ...]
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.method, self.budget, self.calibration, str(self.seed))
        plain = "-".join(parts).replace("%", "percent").replace(":", "of")
        return "".join(letter for letter in plain if letter not in " ,").lower()


def source_name(spec: str) -> str:
    """``arith`` of ``builtin:arith:48``."""
    return spec.split(":")[1]


def every_run(calibration: Calibration) -> Iterator[Run]:
    """All rows, those of the middle budget first; slow searches at that one alone."""
    for keep in sorted(KEEPS, key=lambda keep: abs(keep - 4)):
        yield from _experts(keep, calibration)
    for pattern, options in _PATTERNS.items():
        yield from _weights(pattern, options, calibration)
    for layers in CONDENSED:
        cut = ("--method", "cd-moe", "--layers", str(layers), "--data", calibration.mix)
        yield Run("cd-moe SR", f"{layers} layers", "mix", (_prune(*cut),))


def _prune(*options: str) -> tuple[str, ...]:
    return ("prune", "{model}", *options, "-o", "{out}")


def _experts(keep: int, calibration: Calibration) -> Iterator[Run]:
    budget, kept = f"keep {keep}", ("--keep", str(keep))
    scores, data = ("--scores", "{scores}"), ("--data", calibration.mix)
    for method in _SCORED:
        yield Run(method, budget, "mix", (_prune("--method", method, *kept, *scores),))
    for seed in RANDOM_SEEDS:
        options = ("--method", "random", *kept, "--seed", str(seed))
        yield Run("random", budget, "none", (_prune(*options),), seed)
    adaptive = ("--method", "naee", "--budget", "adaptive", *kept, *scores)
    yield Run("naee, adaptive", budget, "mix", (_prune(*adaptive),))
    domain = ("--method", "naee", *kept, "--data", calibration.domain)
    yield Run("naee", budget, "domain", (_prune(*domain),))
    if keep != 4:
        return
    progressive = ("--method", "naee", "--variant", "progressive", *kept, *data)
    yield Run("naee, progressive", budget, "mix", (_prune(*progressive),))
    for task in calibration.tasks:
        eep = ("--method", "eep", *kept, "--task", task, *_SEARCH)
        yield Run("eep", budget, source_name(task), (_prune(*eep),))


def _weights(pattern: str, options: tuple[str, ...], calibration: Calibration) -> Iterator[Run]:
    data = ("--data", calibration.mix)
    for method in _WEIGHTS:
        scored = ("--scores", "{scores}") if method in ("moe-pruner", "wanda") else data
        reads = () if method == "magnitude" else scored
        cut = ("--method", method, *options, *reads)
        yield Run(method, pattern, "mix" if reads else "none", (_prune(*cut),))
    scored = ("--scores", "{scores}")
    first = ("prune", "{model}", "--method", "moe-pruner", *options, *scored)
    distil = ("distill", "{work}/sparse", "--teacher", "{model}", *data, "--local")
    commands = ((*first, "-o", "{work}/sparse"), (*distil, "-o", "{out}"))
    yield Run("moe-pruner, distilled", pattern, "mix", commands)
