"""Every cut decided and its log loss taken window by window, kept as soon as it is known.

A decision is a plan; the model is computed with the experts that would go masked in the router,
which is what the cut checkpoint computes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from leanmoe.files.digest import bytes_digest
from leanmoe_bench.cuts.cut_runs import PAIRED, Run, windows_of
from leanmoe_bench.cuts.pairs import kept_by_pairs
from leanmoe_bench.kept_rows import Row, finished_rows, once
from leanmoe_bench.reference import leanmoe
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.cutting.layer_plan import read_plan
from leanmoe_pruning.data import load_data
from leanmoe_pruning.evaluation.comparison import WindowSums, measure_window
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.halves import sampled_part
from leanmoe_pruning.scores.bundle import (
    DESCRIPTION,
    ScoreBundle,
    complete_bundle,
    layer_file,
    write_layer,
)
from leanmoe_pruning.scores.effects import EFFECTS, effects_file

Losses = dict[str, list[float]]
_FULL = "full"
_EFFECTS = ("predictions", "text")
# Of a bundle without effects, which takes half as long.
_PLAIN = "plain"


@dataclass(frozen=True)
class Text:
    """What a comparison reads, in windows of each domain.

    The calibration windows are scored whole, and in ``samples`` equal parts for runs of a sample.
    """

    windows: int
    held_out: int
    samples: int = 0


def measure(model: str, runs: Sequence[Run], text: Text, work: Path) -> Iterator[Row]:
    """The full model's row, then those of every run."""
    path, held_out = work / "reference", text.held_out
    if not (path / "config.json").exists():
        leanmoe("reference", str(path), "--model", model)
    full, data = {"method": "full model", "model": model}, windows_of(held_out)
    yield once(_file(work, _FULL, held_out), lambda: {**full, "losses": losses(path, {}, data)})
    has_effects = any("{predictions}" in run.command for run in runs)
    bundles = {one: one for one in _EFFECTS} | {"scores": _EFFECTS[0] if has_effects else _PLAIN}
    for run in runs:
        yield once(_file(work, run.name, held_out), partial(_judged, run, text, work, bundles))


def _scores(work: Path, effects: str, text: Text, sample: int) -> Path:
    """The score bundle of all calibration windows, or of one part of them, made at first use."""
    whole = work / f"scores-{effects}"
    if not (whole / DESCRIPTION).exists():
        data, model = windows_of(text.windows), str(work / "reference")
        options = () if effects == _PLAIN else ("--effects", effects)
        leanmoe("score", model, *options, "--data", data, "-o", str(whole))
    if not sample:
        return whole
    part = work / f"{whole.name}-{sample}-of-{text.samples}"
    if not (part / DESCRIPTION).exists():
        sample_bundle(
            whole, part, RouterRule.of(open_model(work / "reference").shape), text, sample
        )
    return part


def sample_bundle(whole: Path, out: Path, rule: RouterRule, text: Text, sample: int) -> None:
    """The bundle of every ``samples``-th window of each domain, cut out of that of all windows.

    Sums over tokens (moments, largest entries) stay those of all: no cut compared here reads them.
    """
    bundle = ScoreBundle(whole)
    every, files = bundle.description, {}
    windows_W = torch.cat([torch.arange(windows) for windows, _ in every.layout])
    lengths_W = torch.tensor([length for windows, length in every.layout for _ in range(windows)])
    chosen_T = (windows_W % text.samples == sample - 1).repeat_interleave(lengths_W)
    out.mkdir(exist_ok=True)
    for scores in bundle.layers(rule):
        part, _ = sampled_part(scores, chosen_T, torch.zeros_like(chosen_T, dtype=torch.int64))
        files[layer_file(part.layer)] = write_layer(out, part)
        if part.effects_SE is not None:
            name, effects = effects_file(part.layer), {EFFECTS: part.effects_SE}
            files[name] = write_tensors(out / name, effects)
    layout = [
        (len(range(sample - 1, windows, text.samples)), size) for windows, size in every.layout
    ]
    told = f"{every.data_digest}, part {sample} of {text.samples}"
    own = {"layout": layout, "gram_tokens": len(part.router_logits_TE), "files": {}}
    digest = {"data_digest": bytes_digest([told.encode()])}
    complete_bundle(out, every.model_copy(update={**own, **digest}), files, None)


def _file(work: Path, name: str, held_out: int) -> Path:
    return work / f"{name}-on-{held_out}.json"


def finished(runs: Sequence[Run], held_out: int, work: Path) -> list[Row]:
    """The rows that ``work`` holds; ``InputError`` where not even the full model was judged."""
    full = _file(work, _FULL, held_out)
    return finished_rows(full, [_file(work, run.name, held_out) for run in runs])


def _judged(run: Run, text: Text, work: Path, bundles: Mapping[str, str]) -> Row:
    started = time.monotonic()
    kept, own = _made(run, text, work, bundles)
    seconds = round(time.monotonic() - started, 1)
    path, masked = (own, {}) if own else (work / "reference", kept)
    found = losses(path, masked, windows_of(text.held_out))
    if run.writes:
        shutil.rmtree(path)
    told = {**asdict(run), "command": " ".join(run.command), "seconds": seconds}
    if run.heal:
        told["healing"] = " ".join(run.healing)
    return {**told, "kept": list(kept.values()), "losses": found}


def _made(
    run: Run, text: Text, work: Path, bundles: Mapping[str, str]
) -> tuple[dict[int, list[int]], Path | None]:
    """The experts that stay, and what is judged where the source without the others is not it."""
    if not run.writes:
        kept = _kept(run, text, work, bundles)
        return kept, _healed(run, work) if run.heal else None
    out = work / f"{run.name}.model"
    if not out.exists():
        _decide(run, text, work, bundles, out)
    return {}, out


def _healed(run: Run, work: Path) -> Path:
    """The cut checkpoint after its routers were distilled."""
    cut, out = work / f"{run.name}.cut", work / f"{run.name}.model"
    places = {"model": work / "reference", "cut": cut, "out": out}
    if not cut.exists():
        plan = str(work / f"{run.name}.plan")
        leanmoe("prune", str(places["model"]), "--plan", plan, "-o", str(cut))
    if not out.exists():
        leanmoe(*(part.format(**places) for part in run.healing))
    return out


def _kept(run: Run, text: Text, work: Path, bundles: Mapping[str, str]) -> dict[int, list[int]]:
    """The experts of each layer that stay, decided by the run's command where it has one."""
    plan, model = work / f"{run.name}.plan", work / "reference"
    if run.method in PAIRED:
        layers = open_model(model).shape.moe_layers
        return kept_by_pairs(layers, run.keep, run.method, run.seed)
    if not plan.exists():
        _decide(run, text, work, bundles, plan)
    read = read_plan(plan, open_model(model))
    return {layer: list(own.kept) for layer, own in read.layers.items()}


def _decide(run: Run, text: Text, work: Path, bundles: Mapping[str, str], out: Path) -> None:
    """Run its command, which leaves a plan or a model in ``out``."""
    asked = [one for one in bundles if f"{{{one}}}" in run.command]
    scores = {one: _scores(work, bundles[one], text, run.sample) for one in asked}
    leanmoe(*(part.format(model=work / "reference", out=out, **scores) for part in run.command))


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
