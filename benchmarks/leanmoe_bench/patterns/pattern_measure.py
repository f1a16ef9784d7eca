"""Every checkpoint made and its log loss taken window by window, kept as soon as it is known.

Checkpoints are removed once judged, or once trained where a later row trains them; a folder with
the rows so far is gone on from.
"""

from __future__ import annotations

import json
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
    given: dict[str, str | Path] = {"model": model, "scores": scores, "data": data}
    trained = {run.untrained for run in runs if run.trained}
    for run in runs:
        is_kept = run.name in trained
        yield once(work / f"{run.name}.json", partial(_judged, run, given, work, is_kept))


def finished(runs: Sequence[Run], work: Path) -> list[Row]:
    """The rows that ``work`` holds; ``InputError`` where not even the full model was judged."""
    full = work / _FULL_FILE
    return finished_rows(full, [work / f"{run.name}.json" for run in runs])


def _judged(run: Run, given: Mapping[str, str | Path], work: Path, is_kept: bool) -> Row:
    """``is_kept`` where a later run trains this one's checkpoint."""
    sparse = work / f"{run.untrained}-sparse"
    out = sparse if is_kept else work / "out"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
    seconds = _make(run, {**given, "sparse": sparse, "out": out})
    found = losses(out)
    if not is_kept:
        for path in (out, sparse):
            shutil.rmtree(path, ignore_errors=True)
    shown = [" ".join(command) for command in run.commands]
    return {**asdict(run), "commands": shown, "seconds": seconds, "losses": found}


def _make(run: Run, given: Mapping[str, str | Path]) -> float:
    """The seconds it took, with those of the checkpoint that was there to be trained."""
    sparse, before, left = Path(given["sparse"]), 0.0, run.commands
    if run.trained and sparse.exists():
        row = json.loads((sparse.parent / f"{run.untrained}.json").read_text(encoding="utf-8"))
        before, left = row["seconds"], run.commands[1:]
    started = time.monotonic()
    for command in left:
        leanmoe(*(part.format(**given) for part in command))
    return round(before + time.monotonic() - started, 1)


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
