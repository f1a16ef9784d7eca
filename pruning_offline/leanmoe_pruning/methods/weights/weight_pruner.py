"""``--method moe-pruner``, ``wanda``, ``magnitude`` and ``sparsegpt``: options, run, dump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanmoe.errors import InputError
from leanmoe.families.base import Projection
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.weights.layer_rules import (
    Outcome,
    by_magnitude_,
    by_norms_,
    by_sparsegpt_,
)
from leanmoe_pruning.methods.weights.layer_weights import (
    LayerWeights,
    check_changeable,
    check_plain,
    read_layer,
)
from leanmoe_pruning.methods.weights.norms import told
from leanmoe_pruning.methods.weights.pattern import Pattern, read_pattern
from leanmoe_pruning.methods.weights.schedule import (
    SCHEDULES,
    LayerInputs,
    Schedule,
    run_schedule,
)
from leanmoe_pruning.options import option
from leanmoe_pruning.progress import Tick, progress
from leanmoe_pruning.scores.moments import Moments

Settle = Callable[[int, LayerWeights, Outcome], LayerWeights]
# What the golden sets call the three matrices.
DUMPED: dict[Projection, str] = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
NOTHING_SAVED = (
    "the zeros are stored and multiplied like any other weight, so a stock engine saves neither "
    "memory nor time with this checkpoint: it shows what the sparsity costs in quality and can "
    "be stored compressed later"
)
BY_ALL_TOKENS = (
    "no token of the data was routed to some experts, whose weights were judged by the inputs "
    "of all tokens"
)
BY_WEIGHT = "some experts get no input at all, and were judged by the size of their weights"


@dataclass
class _Found:
    """What is gathered while the layers pass."""

    dump: bool
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    zeros: dict[int, float] = field(default_factory=dict)
    by_all_tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    by_weight: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add(self, layer: int, weights: LayerWeights, outcome: Outcome, tag: str) -> None:
        self.zeros[layer] = round(weights.zeros(), 6)
        self.by_all_tokens[layer] = outcome.by_all_tokens
        self.by_weight[layer] = outcome.by_weight
        if self.dump:
            self._add_tensors(f"{tag}.layer{layer}", outcome)

    def _add_tensors(self, prefix: str, outcome: Outcome) -> None:
        for projection, short in DUMPED.items():
            keep = torch.stack(outcome.keep[projection])
            packed = np.packbits(keep.numpy(), axis=-1)
            self.tensors[f"{prefix}.{short}.keep"] = torch.from_numpy(packed)
            if outcome.norms is not None and outcome.calls_E is not None:
                norm = outcome.norms.by_projection[projection].clone()
                self.tensors[f"{prefix}.{short}.score_norm"] = norm
                self.tensors[f"{prefix}.{short}.calls"] = outcome.calls_E.clone()

    def notes(self) -> tuple[str, ...]:
        return (
            NOTHING_SAVED,
            *told(self.by_all_tokens, BY_ALL_TOKENS),
            *told(self.by_weight, BY_WEIGHT),
        )


@dataclass(frozen=True)
class WeightPruner:
    """A checked run of one of the four."""

    method: str
    inputs: Inputs
    pattern: Pattern
    schedule: Schedule | None
    out: Path

    def settings(self) -> dict[str, Any]:
        kind = "pattern" if ":" in self.pattern.text else "sparsity"
        found = {kind: self.pattern.text}
        return {**found, "schedule": self.schedule} if self.schedule else found

    def decide(self, dump: bool) -> Decision:
        spool = WeightSpool.beside(self.out)
        try:
            found = self._prune(spool, dump)
        except BaseException:
            spool.remove()
            raise
        return Decision(
            layers={},
            tensors=found.tensors,
            facts={self._tag: {**self.settings(), "zeros": found.zeros}},
            notes=found.notes(),
            replaced=spool,
            record={"zeros": {str(layer): share for layer, share in found.zeros.items()}},
        )

    @property
    def _tag(self) -> str:
        parts = (self.method.replace("-", "_"), self.pattern.tag, self.schedule)
        return ".".join(part for part in parts if part)

    def _prune(self, spool: WeightSpool, dump: bool) -> _Found:
        found = _Found(dump)

        def settle(layer: int, weights: LayerWeights, outcome: Outcome) -> LayerWeights:
            spool.put(layer, weights.tensors)
            found.add(layer, weights, outcome, self._tag)
            return weights

        with progress(f"{self.method}: zeroing weights", self.inputs.shape.n_layers) as tick:
            if self.method == "magnitude" or self.inputs.bundle is not None:
                self._without_model(settle, tick)
            else:
                self._with_model(settle, tick)
        return found

    def _without_model(self, settle: Settle, tick: Tick) -> None:
        """From the weights alone, or from statistics that were taken before."""
        checkpoint = self.inputs.checkpoint
        reader = checkpoint.reader
        if self.method == "magnitude":
            for layer in (i for i, own in checkpoint.layers.items() if own.n_experts):
                weights = read_layer(reader, checkpoint, layer)
                settle(layer, weights, by_magnitude_(weights, self.pattern))
                tick()
            return
        for scores in self.inputs.layers():
            weights = read_layer(reader, checkpoint, scores.layer)
            settle(scores.layer, weights, self._by_norms_(weights, scores.moments))
            tick()

    def _by_norms_(self, weights: LayerWeights, moments: Moments) -> Outcome:
        return by_norms_(weights, moments, self.method == "moe-pruner", self.pattern)

    def _with_model(self, settle: Settle, tick: Tick) -> None:
        data, stream = self.inputs.need_data(f"--method {self.method}"), self.inputs.stream()

        def prune(seen: LayerInputs) -> LayerWeights:
            layer = seen.layer.index
            weights = read_layer(stream.reader, stream.checkpoint, layer)
            if self.method == "sparsegpt":
                outcome = by_sparsegpt_(weights, seen, self.pattern)
            else:
                outcome = self._by_norms_(weights, seen.moments())
            return settle(layer, weights, outcome)

        run_schedule(stream, data.ids, self.schedule or "unpruned", prune, tick)


@dataclass(frozen=True)
class WeightOptions:
    """The options of the four."""

    sparsity: float | None = option("share of each row's weights to zero", metavar="SHARE")
    pattern: str | None = option(
        "zero N of every M consecutive weights instead (2:4, 4:8)", metavar="N:M"
    )
    schedule: Schedule | None = option(
        "whether a layer's inputs come from the model as it is (default), or as pruned so far",
        choices=SCHEDULES,
    )


def _opener(method: str) -> Callable[[Request, WeightOptions, Inputs], WeightPruner]:
    def open_(request: Request, options: WeightOptions, inputs: Inputs) -> WeightPruner:
        if request.keep is not None or request.ratio is not None:
            raise InputError(
                f"--method {method} zeroes single weights and removes no expert; drop --keep and "
                "--ratio, give --sparsity or --pattern, and cut experts in a run of its own"
            )
        check_changeable(inputs.checkpoint)
        pattern = read_pattern(options.sparsity, options.pattern)
        shape = inputs.shape
        pattern.check(shape.hidden_size, f"the gate and up projections of {inputs.checkpoint.path}")
        pattern.check(shape.expert_ffn_size, f"the down projections of {inputs.checkpoint.path}")
        schedule = _schedule(request, options, inputs, method)
        return WeightPruner(method, inputs, pattern, schedule, request.out)

    return open_


def _schedule(
    request: Request, options: WeightOptions, inputs: Inputs, method: str
) -> Schedule | None:
    if method == "magnitude":
        given = {"schedule": options.schedule, "data": request.data, "scores": request.scores}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"--method magnitude looks at no activations; drop --{name}")
        return None
    schedule: Schedule = options.schedule or "unpruned"
    inputs.need_scores(method)
    if schedule == "pruned":
        inputs.need_data("--schedule pruned runs the model as it prunes")
    if method == "sparsegpt":
        check_plain(inputs.checkpoint, "--method sparsegpt")
        inputs.need_data("--method sparsegpt needs more of the activations than a bundle keeps")
    return schedule


MOE_PRUNER = Method(
    "moe-pruner",
    "zeroes weights of low |W| times the gated norm of their inputs",
    _opener("moe-pruner"),
    WeightOptions,
    takes_mixed=True,
    plannable=False,
)
WANDA = Method(
    "wanda",
    "the same without the gate",
    _opener("wanda"),
    WeightOptions,
    takes_mixed=True,
    plannable=False,
)
MAGNITUDE = Method(
    "magnitude",
    "zeroes the smallest weights",
    _opener("magnitude"),
    WeightOptions,
    reads_data=False,
    takes_mixed=True,
    plannable=False,
)
SPARSEGPT = Method(
    "sparsegpt",
    "zeroes weights and corrects the others",
    _opener("sparsegpt"),
    WeightOptions,
    takes_mixed=True,
    plannable=False,
)
WEIGHT_METHODS = (MOE_PRUNER, WANDA, MAGNITUDE, SPARSEGPT)
