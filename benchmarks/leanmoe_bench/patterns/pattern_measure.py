"""Every checkpoint made and its log loss taken window by window, kept as soon as it is known.

Checkpoints are removed once judged; a folder with the rows so far is gone on from.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from leanmoe_bench.kept_rows import Row, finished_rows, once
from leanmoe_bench.patterns.pattern_runs import HELD_OUT, SCORED, Run
from leanmoe_bench.reference import leanmoe, reference_model
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.data import load_data
from leanmoe_pruning.evaluation.perplexity import domain_sums, forward
from leanmoe_pruning.forward.skipping import EXACT
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import no_tick

_FULL_FILE = "full.json"


def measure(runs: Sequence[Run], data: str, work: Path) -> Iterator[Row]:
    """The full model's row, then those of every run."""
    model, scores = reference_model(work), work / "scores"
    yield once(work / _FULL_FILE, lambda: {"pattern": "full model", "losses": losses(model)})
    is_scored = any(run.method == SCORED for run in runs)
    if is_scored and not (scores / "scores.json").exists():
        leanmoe("score", str(model), "--data", data, "-o", str(scores))
    made = {"sparse": work / "sparse", "out": work / "out"}
    given: dict[str, str | Path] = {"model": model, "scores": scores, "data": data}
    for run in runs:
        yield once(work / f"{run.name}.json", partial(_judged, run, given, made))


def finished(runs: Sequence[Run], work: Path) -> list[Row]:
    """The rows that ``work`` holds; ``InputError`` where not even the full model was judged."""
    full = work / _FULL_FILE
    return finished_rows(full, [work / f"{run.name}.json" for run in runs])


def _judged(run: Run, given: Mapping[str, str | Path], made: Mapping[str, Path]) -> Row:
    _remove(made)  # of a run that was stopped
    started = time.monotonic()
    for command in run.commands:
        leanmoe(*(part.format(**given, **made) for part in command))
    seconds = round(time.monotonic() - started, 1)
    found = losses(made["out"])
    _remove(made)
    shown = [" ".join(command) for command in run.commands]
    return {**asdict(run), "commands": shown, "seconds": seconds, "losses": found}


def _remove(made: Mapping[str, Path]) -> None:
    for path in made.values():
        shutil.rmtree(path, ignore_errors=True)


@torch.inference_mode()
def losses(path: Path) -> dict[str, list[float]]:
    """Mean log loss in nats per token of each held-out window, by domain."""
    checkpoint = open_model(path)
    data = load_data(HELD_OUT, checkpoint, "heldout")
    run = forward(DecoderStream(checkpoint), data, EXACT, no_tick)
    return {
        name: [loss / (tokens - 1) for loss, tokens in zip(mine.log_loss, mine.tokens, strict=True)]
        for name, (mine, _) in domain_sums(run, None, data, no_tick).items()
    }
