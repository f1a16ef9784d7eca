"""Run every case of a golden set through the command line and compare what it dumps.

Numbers: the largest difference over the largest number of the tensor, at most 1e-4; single
figures (losses, betas, divergences, sums) one by one. Counts, kept sets, orders and masks must
be equal.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe_bench.goldens.golden_cases import RESULTS, Case, cases_of

TOLERANCE = 1e-4
# Whole tensors of activations and weights: single entries near zero say nothing.
_TENSORS = ("probe_logits", "block_output", "merged.")


@dataclass(frozen=True)
class Row:
    """One case: tensors compared, the worst of the numbers, what differs or is missing."""

    case: str
    equal: int
    close: int
    worst: float
    wrong: tuple[str, ...]


def check_set(directory: Path, work: Path) -> Iterator[Row]:
    """Every case of a set; ``InputError`` where there is none."""
    cases = list(cases_of(directory))
    if not cases:
        raise InputError(
            f"{directory} holds no golden set: expected folders naee, eep, cdmoe, moe_pruner, reap"
        )
    for number, case in enumerate(cases):
        yield _check(case, work / str(number))


def _check(case: Case, work: Path) -> Row:
    work.mkdir(parents=True)
    dump = work / "dump"
    model = str(case.folder / "checkpoint")
    command = ["prune", model, *case.options, "--dump", str(dump), "-o", str(work / "out")]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _no_advice():
        code = main(command)
    if code != 0:
        return Row(case.name, 0, 0, 0.0, (said.getvalue().strip().splitlines()[-1],))
    return _compare(case, load_file(case.folder / RESULTS), load_file(dump / RESULTS))


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """What a result is good for is no news here."""
    log = logging.getLogger("leanmoe_pruning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _compare(case: Case, expected: dict[str, Any], found: dict[str, Any]) -> Row:
    equal, close, worst, wrong = 0, 0, 0.0, []
    for name, own in case.tensors.items():
        if own not in found or found[own].shape != expected[name].shape:
            wrong.append(f"{name} is missing or of another shape")
        elif expected[name].dtype.kind in "iub":
            equal += 1
            if not np.array_equal(found[own], expected[name]):
                wrong.append(f"{name} differs")
        else:
            close += 1
            error = relative_error(name, found[own], expected[name])
            worst = max(worst, error)
            if not error <= TOLERANCE:
                wrong.append(f"{name} is off by {error:.1e}")
    return Row(case.name, equal, close, worst, tuple(wrong))


def relative_error(name: str, found: Any, expected: Any) -> float:
    """The worst relative error; infinite where one has no number and the other has."""
    blank = np.isnan(expected)
    if not np.array_equal(blank, np.isnan(found)):
        return float("inf")
    gap = np.abs(found - expected)[~blank].astype(np.float64)
    size = np.abs(expected)[~blank].astype(np.float64)
    if not len(gap):
        return 0.0
    if any(part in name for part in _TENSORS):
        return float(gap.max() / max(size.max(), 1e-30))
    return float((gap / np.maximum(size, 1e-30)).max())
