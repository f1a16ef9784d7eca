"""What must hold of a layer on a device before a release may claim that it skips there.

Four checks over anything that can run one layer with and without our part (``Subject``), so that
they can be tried on a layer that is known to be wrong. M tokens, D model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

Inputs = tuple[torch.Tensor, torch.Tensor]
Result = dict[str, Any]
SKIPPING = 0.6
MANY = 64


class Subject(Protocol):
    """One layer. Inputs are hidden states [M, D] and router logits [M, E]."""

    def inputs(self, tokens: int, seed: int) -> Inputs:
        """Random inputs, the same for the same arguments."""

    def stock(self, inputs: Inputs) -> torch.Tensor:
        """Output [M, D] without our part."""

    def ours(self, inputs: Inputs, beta: float, *, zero: bool = False) -> torch.Tensor:
        """Output [M, D] of our part at ``beta``, launched even at 0; ``zero`` keeps every id."""

    def replayer(self, inputs: Inputs) -> Callable[[float], torch.Tensor]:
        """Capture our part once; the function sets a beta and replays."""

    def poison(self) -> None:
        """Fill the memory between the kernel's steps with NaN."""

    def skipped(self) -> int:
        """Assignments skipped so far."""


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest expected value; infinite where not a number."""
    if not bool(found.isfinite().all()):
        return float("inf")
    scale = expected.float().abs().max().clamp(min=1e-12)
    return float((found.float() - expected.float()).abs().max() / scale)


def exact_at_zero(subject: Subject, sizes: list[int]) -> Result:
    """Beta 0 gives stock's output to the bit."""
    worst, equal = 0.0, True
    for size in sizes:
        inputs = subject.inputs(size, seed=1)
        expected, found = subject.stock(inputs), subject.ours(inputs, 0.0)
        equal &= torch.equal(found, expected)
        worst = max(worst, difference(found, expected))
    return {"passed": equal, "difference": worst, "sizes": sizes}


def mode_equals_zero(subject: Subject, sizes: list[int], tolerance: float) -> Result:
    """Leaving work out gives what weight zero gives, whatever lay in the workspace before."""
    worst, skipped = 0.0, 0
    for size in sizes:
        inputs, before = subject.inputs(size, seed=2), subject.skipped()
        expected = subject.ours(inputs, SKIPPING, zero=True)
        subject.poison()
        worst = max(worst, difference(subject.ours(inputs, SKIPPING), expected))
        skipped += subject.skipped() - before
    passed = worst <= tolerance and skipped > 0
    return {"passed": passed, "difference": worst, "skipped": skipped, "sizes": sizes}


def replay_follows(subject: Subject, sizes: list[int], tolerance: float) -> Result:
    """A captured graph follows a beta that changes, on a poisoned workspace, and counts."""
    worst, counted = 0.0, True
    for size in sizes:
        inputs = subject.inputs(size, seed=3)
        replay = subject.replayer(inputs)
        for beta in (0.0, SKIPPING, 1.0, 0.0):
            start = subject.skipped()
            expected = subject.ours(inputs, beta, zero=True).clone()
            between = subject.skipped()
            subject.poison()
            worst = max(worst, difference(replay(beta), expected))
            counted &= subject.skipped() - between == between - start
    return {"passed": worst <= tolerance and counted, "difference": worst, "counted": counted}


def one_as_many(subject: Subject, sizes: list[int], tolerance: float) -> Result:
    """A token's output does not depend on how many run beside it."""
    hidden, logits = subject.inputs(max(MANY, *sizes), seed=4)
    many = subject.ours((hidden, logits), SKIPPING).clone()
    worst = 0.0
    for size in sizes:
        subject.poison()
        few = subject.ours((hidden[:size].contiguous(), logits[:size].contiguous()), SKIPPING)
        worst = max(worst, difference(few, many[:size]))
    return {"passed": worst <= tolerance, "difference": worst, "sizes": sizes}


def run_all(subject: Subject, border: int, tolerance: float) -> dict[str, Result]:
    """All four; ``border`` is the largest size of the path without alignment, 0 for none."""
    near = sorted({1, max(border - 1, 1), max(border, 1), border + 1, MANY})
    checks: dict[str, Callable[[], Result]] = {
        "exact_at_beta_0": lambda: exact_at_zero(subject, [*near, 512]),
        "mode_equals_zero_on_poison": lambda: mode_equals_zero(subject, [*near, 512], tolerance),
        "graph_replay_follows_beta": lambda: replay_follows(subject, [MANY, border + 1], tolerance),
        "one_token_as_many": lambda: one_as_many(subject, near, tolerance),
    }
    return {name: _tried(check) for name, check in checks.items()}


def _tried(check: Callable[[], Result]) -> Result:
    """One check's failure must not hide the others'."""
    try:
        return check()
    except Exception as error:
        return {"passed": False, "error": f"{type(error).__name__}: {error}"}
