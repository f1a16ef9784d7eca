"""Which checkpoints are compared: the commands of each, as a user would type them.

``{model}``, ``{scores}``, ``{data}``, ``{sparse}`` and ``{out}`` stand for the source, its score
bundle, the text that both come from, a checkpoint to train and the one to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math")
# Of the 14 to 23 windows a domain holds out.
HELD_OUT = ",".join(f"builtin:{domain}:8" for domain in DOMAINS)
UNSTRUCTURED = "unstructured"
# Patterns by the share of weights they keep.
_PATTERNS = {50: ("16:32", "4:8", "2:4"), 75: ("24:32", "6:8"), 25: ("8:32",)}
SCORED = "moe-pruner"
# Weights that stay make up for those that go.
_CORRECTED = "sparsegpt"
METHODS = (SCORED, _CORRECTED)


@dataclass(frozen=True)
class Run:
    """One row."""

    pattern: str
    kept: int
    permuted: bool
    trained: bool
    commands: tuple[tuple[str, ...], ...]
    method: str = SCORED

    @property
    def name(self) -> str:
        words = (self.pattern.replace(":", "of"), f"kept {self.kept}")
        methods = () if self.method == SCORED else (self.method,)
        own = [
            word
            for word, is_so in (("permuted", self.permuted), ("trained", self.trained))
            if is_so
        ]
        return "-".join((*words, *methods, *own)).replace(" ", "-")

    @property
    def untrained(self) -> str:
        """The name of the run that makes what this one trains."""
        return replace(self, trained=False).name


def calibration(windows: int) -> str:
    """``--data`` of as many windows of each domain."""
    return ",".join(f"builtin:{domain}:{windows}" for domain in DOMAINS)


def every_run(training: str, steps: int) -> Iterator[Run]:
    """Of each method, rows of the same share together, the one without groups first.

    Trained ones learn ``steps`` steps from the ``training`` text.
    """
    for kept, patterns in _PATTERNS.items():
        yield _pruned(UNSTRUCTURED, kept, False)
        for pattern in patterns:
            for permuted in (False, True) if pattern.endswith(":32") else (False,):
                yield _pruned(pattern, kept, permuted)
    for pattern, permuted in ((UNSTRUCTURED, False), ("16:32", True)):
        yield _trained(_pruned(pattern, 50, permuted), training, steps)
    plain = [_pruned(pattern, 50, False, _CORRECTED) for pattern in (UNSTRUCTURED, "16:32")]
    yield from plain
    permuted_run = _pruned("16:32", 50, True, _CORRECTED)
    yield from (_trained(run, training, steps) for run in plain)
    yield permuted_run
    yield _trained(permuted_run, training, steps)


def _pruned(pattern: str, kept: int, permuted: bool, method: str = SCORED) -> Run:
    if pattern == UNSTRUCTURED:
        asked: tuple[str, ...] = ("--sparsity", f"{1 - kept / 100:g}")
    else:
        asked = ("--pattern", pattern, "--permute" if permuted else "--no-permute")
    told = ("--scores", "{scores}") if method == SCORED else ("--data", "{data}")
    pruned = ("prune", "{model}", "--method", method, *asked, *told, "-o", "{out}")
    return Run(pattern, kept, permuted, False, (pruned,), method)


def _trained(run: Run, data: str, steps: int) -> Run:
    first = (*run.commands[0][:-1], "{sparse}")
    taught = ("--teacher", "{model}", "--local", "--data", data, "--steps", str(steps))
    commands = (first, ("distill", "{sparse}", *taught, "-o", "{out}"))
    return replace(run, trained=True, commands=commands)
