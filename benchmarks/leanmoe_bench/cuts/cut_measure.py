"""Every cut decided and its log loss taken window by window, kept as soon as it is known.

A decision is a plan; the model is computed with the experts that would go masked in the router,
which is what the cut checkpoint computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from leanmoe_bench.cuts.cut_runs import Run, windows_of
from leanmoe_bench.kept_rows import Row, finished_rows, once
from leanmoe_bench.reference import leanmoe
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.cutting.layer_plan import read_plan
from leanmoe_pruning.data import load_data
from leanmoe_pruning.evaluation.comparison import WindowSums, measure_window
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream

Losses = dict[str, list[float]]
_FULL = "full"


def measure(model: str, runs: Sequence[Run], data: str, held_out: int, work: Path) -> Iterator[Row]:
    """The full model's row, then those of every run, on ``held_out`` windows of each domain."""
    path, scores = work / "reference", work / "scores"
    if not (path / "config.json").exists():
        leanmoe("reference", str(path), "--model", model)
    full, text = {"method": "full model", "model": model}, windows_of(held_out)
    yield once(_file(work, _FULL, held_out), lambda: {**full, "losses": losses(path, {}, text)})
    if not (scores / "scores.json").exists():
        leanmoe("score", str(path), "--data", data, "-o", str(scores))
    places = {"model": path, "scores": scores}
    for run in runs:
        yield once(_file(work, run.name, held_out), partial(_judged, run, places, work, text))


def _file(work: Path, name: str, held_out: int) -> Path:
    return work / f"{name}-on-{held_out}.json"


def finished(runs: Sequence[Run], held_out: int, work: Path) -> list[Row]:
    """The rows that ``work`` holds; ``InputError`` where not even the full model was judged."""
    full = _file(work, _FULL, held_out)
    return finished_rows(full, [_file(work, run.name, held_out) for run in runs])


def _judged(run: Run, places: dict[str, Path], work: Path, text: str) -> Row:
    plan = work / f"{run.name}.plan"
    started = time.monotonic()
    if not plan.exists():
        leanmoe(*(part.format(**places, out=plan) for part in run.command))
    seconds = round(time.monotonic() - started, 1)
    read = read_plan(plan, open_model(places["model"]))
    kept = {layer: list(own.kept) for layer, own in read.layers.items()}
    told = {**asdict(run), "command": " ".join(run.command), "seconds": seconds}
    return {**told, "kept": list(kept.values()), "losses": losses(places["model"], kept, text)}


@torch.inference_mode()
def losses(path: Path, kept: Mapping[int, Sequence[int]], text: str) -> Losses:
    """Mean log loss in nats per token of each held-out window of ``text``, by domain.

    ``kept`` are the experts of a layer that stay, all where it is not named.
    """
    checkpoint = open_model(path)
    data = load_data(text, checkpoint, "heldout")
    stream = DecoderStream(checkpoint)
    hidden = embed_all(stream, data.ids)
    for layer in stream.layers():
        step_(layer, hidden, kept.get(layer.index))
    found: Losses = {}
    for source, hidden_NTD in zip(data.sources, hidden, strict=True):
        sums = WindowSums()
        for window_TD, ids_T in zip(hidden_NTD, source.ids_NT, strict=True):
            measure_window(stream, window_TD, ids_T, sums, None)
        pairs = zip(sums.log_loss, sums.tokens, strict=True)
        found[source.name] = [loss / (tokens - 1) for loss, tokens in pairs]
    return found
