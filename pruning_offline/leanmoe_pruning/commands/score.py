"""``leanmoe score``: one pass over data, statistics for every selection method."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from leanmoe.command import Result
from leanmoe.files.digest import bytes_digest
from leanmoe.files.output import check_output
from leanmoe.files.resuming import Unfinished, resumable_directory
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import check_uniform, open_runnable_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.halves import compare_halves
from leanmoe_pruning.methods.unreached import unreached_notes
from leanmoe_pruning.options import (
    command_of,
    compute_option,
    data_option,
    force_option,
    model_argument,
    option,
    out_option,
    window_option,
)
from leanmoe_pruning.progress import Tick, progress
from leanmoe_pruning.scores.activations import PORTION_TOKENS
from leanmoe_pruning.scores.bundle import (
    BundleDescription,
    complete_bundle,
    describe,
    read_layer,
    unreached_experts,
)
from leanmoe_pruning.scores.effects import NextTokens, effects_into
from leanmoe_pruning.scores.passing import sampled_tokens, score_into
from leanmoe_pruning.scores.sampling import ALL_TOKENS_UP_TO, MOST_TOKENS


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What ``leanmoe score`` takes."""

    model: Path = model_argument()
    data: str = data_option()
    window: int = window_option()
    gram_tokens: int | None = option(
        "tokens, evenly spaced, whose expert outputs naee compares: fewer are faster (default: "
        f"all with up to {ALL_TOKENS_UP_TO} experts per layer, else up to {MOST_TOKENS}, fewer "
        "with very many experts)",
        metavar="N",
    )
    effects: Literal["predictions", "text"] | None = option(
        "also take what each expert's output does to the model's own predictions, or to the log "
        "loss of the text, back through all layers, for `prune --method naee --spread`; two to "
        "four times as long",
        nargs="?",
        const="predictions",
        choices=("predictions", "text"),
    )
    compute: str | None = compute_option()
    out: Path = out_option("score bundle directory to write")
    force: bool = force_option()
    seed: int = 0


@dataclass(frozen=True)
class _Run:
    """A checked run: the layers, the tokens they are scored on, and what the bundle says of both.

    Of the tokens ``sampled`` get a Gram matrix.
    """

    stream: DecoderStream
    data: DataSet
    sampled: torch.Tensor
    described: BundleDescription


@torch.inference_mode()
def _run(options: ScoreOptions) -> Result:
    started = time.monotonic()
    run = _open(options)
    with (
        stop_on_signals(),
        resumable_directory(options.out, _key(run.described), options.force) as unfinished,
        progress("scoring layers", run.stream.n_layers * (1 + bool(options.effects))) as tick,
    ):
        # Of the MoE layers, which are what is counted beside it.
        resumed = sum(layer < unfinished.step for layer in run.described.moe_layers)
        _pass(run, options, unfinished, tick)
        found = _complete(run, unfinished)
        unreached = unreached_experts(unfinished.output, found.moe_layers)
    halves = found.halves
    notes = unreached_notes(unreached, "are worth nothing to most methods and go first")
    return {
        "out": str(options.out),
        "digest": found.digest(),
        "tokens": run.data.tokens,
        "gram_tokens": found.gram_tokens,
        "layers": len(found.moe_layers),
        "layers_resumed": resumed,
        "halves": None if halves is None else halves.model_dump(mode="json", exclude_none=True),
        "notes": [*([] if halves is None else [halves.sentence()]), *notes],
        "seconds": round(time.monotonic() - started, 1),
    }


def _open(options: ScoreOptions) -> _Run:
    """Refuse whatever can be refused before any work."""
    check_output(options.out, options.force, [options.model])
    checkpoint = open_runnable_model(options.model)
    check_uniform(checkpoint)
    data = load_data(
        options.data, checkpoint, "calibration", window=options.window, seed=options.seed
    )
    stream = DecoderStream(checkpoint, options.compute)
    sampled = sampled_tokens(stream, data.ids, options.gram_tokens)
    described = describe(
        checkpoint,
        checkpoint.digests,
        data,
        stream.compute,
        len(sampled),
        _next_tokens(options),
    )
    return _Run(stream, data, sampled, described)


def _pass(run: _Run, options: ScoreOptions, unfinished: Unfinished, tick: Tick) -> None:
    """Score what an earlier run did not: forwards, and back where effects are asked for."""
    score_into(unfinished, run.stream, run.data.ids, run.sampled, tick, bool(options.effects))
    if run.described.effects is not None:
        _pass_back(run, options, run.described.effects, unfinished, tick)


def _complete(run: _Run, unfinished: Unfinished) -> BundleDescription:
    """Add to the layers' files what is said of all of them."""
    described, shape = run.described, run.stream.shape
    rule = RouterRule.of(shape)
    layers = (read_layer(unfinished.output, layer, rule) for layer in described.moe_layers)
    halves = compare_halves(layers, described.layout, len(run.sampled), shape)
    return complete_bundle(unfinished.output, described, unfinished.finished(), halves)


def _next_tokens(options: ScoreOptions) -> NextTokens | None:
    return options.seed if options.effects == "predictions" else options.effects


def _pass_back(
    run: _Run, options: ScoreOptions, next_tokens: NextTokens, unfinished: Unfinished, tick: Tick
) -> None:
    # Gradients need tensors that were not made for inference alone: a stream of their own.
    with torch.inference_mode(False), torch.no_grad():
        stream = DecoderStream(open_runnable_model(options.model), options.compute)
        effects_into(unfinished, stream, run.data.ids, run.sampled, next_tokens, tick)


def _key(described: BundleDescription) -> str:
    followed = f"{described.digest()} in portions of {PORTION_TOKENS} tokens"
    return bytes_digest([followed.encode()]).removeprefix("sha256:")[:12]


def _show(result: Result) -> str:
    resumed = result["layers_resumed"]
    before = f", {resumed} finished by an earlier run," if resumed else ""
    scored = (
        f"scored {result['layers']} layers{before} on {result['tokens']} tokens in "
        f"{result['seconds']} s: {result['out']}"
    )
    return "\n".join([scored, *result["notes"]])


COMMAND = command_of(
    ScoreOptions,
    _run,
    name="score",
    summary="Run data through a model once and keep the statistics every pruning method needs.",
    example="leanmoe score ./reference --data builtin:gen:4,builtin:c:4 -o ./scores",
    show=_show,
)
