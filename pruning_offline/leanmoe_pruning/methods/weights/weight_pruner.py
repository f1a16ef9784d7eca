"""``--method moe-pruner``, ``wanda``, ``magnitude`` and ``sparsegpt``: options, run, dump."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanmoe.errors import InputError
from leanmoe.families.base import Projection
from leanmoe.input_orders import order_name
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.distillation.filters import experts
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.weights.layer_rules import (
    Grouping,
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
from leanmoe_pruning.methods.weights.pattern import OfEvery, Pattern, read_pattern
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
    "the zeros are stored and multiplied like any other weight, so this checkpoint saves neither "
    "memory nor time: --compress, or `leanmoe pack` later, stores it without them"
)
BY_ALL_TOKENS = (
    "no token of the data was routed to some experts, whose weights were judged by the inputs "
    "of all tokens"
)
BY_WEIGHT = "some experts get no input at all, and were judged by the size of their weights"
TOO_NARROW = (
    "2:4 costs far more than wider patterns of the same sparsity (Qwen3's average falls from 54 to "
    "15 %, arXiv 2603.05232; docs/results.md has this project's table); 16:32 keeps as much"
)
# The smallest group whose columns are put in order without being asked.
PERMUTED_GROUP = 16
HELD_FAST = "the experts are float8 in blocks with a scale each, so their hidden channels stay"
STACKED = "this family stacks its experts, so their input columns are grouped as they stand"


@dataclass
class _Found:
    """What is gathered while the layers pass."""

    dump: bool
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    zeros: dict[int, float] = field(default_factory=dict)
    by_all_tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    by_weight: dict[int, tuple[int, ...]] = field(default_factory=dict)
    input_orders: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    held_fast: bool = False

    def add(self, layer: int, weights: LayerWeights, outcome: Outcome, tag: str) -> None:
        self.zeros[layer] = round(weights.zeros(), 6)
        self.by_all_tokens[layer] = outcome.by_all_tokens
        self.by_weight[layer] = outcome.by_weight
        self.input_orders[layer] = outcome.input_orders
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
            *((HELD_FAST,) if self.held_fast else ()),
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
    permute: bool
    compressed: bool
    out: Path

    def settings(self) -> dict[str, Any]:
        grouped = isinstance(self.pattern, OfEvery)
        found: dict[str, Any] = {"pattern" if grouped else "sparsity": self.pattern.text}
        if grouped:
            found["permute"] = self.permute
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
            notes=(*self._notes(), *found.notes()),
            replaced=spool,
            input_orders=self._named(found),
            record={"zeros": {str(layer): share for layer, share in found.zeros.items()}},
        )

    def _notes(self) -> tuple[str, ...]:
        narrow = self.pattern == OfEvery(2, 4)
        stacked = self.permute and self.inputs.checkpoint.family.stacked
        said = {NOTHING_SAVED: not self.compressed, TOO_NARROW: narrow, STACKED: stacked}
        return tuple(note for note, applies in said.items() if applies)

    def _named(self, found: _Found) -> dict[str, torch.Tensor]:
        family = self.inputs.checkpoint.family
        return {
            order_name(family, layer, expert): order.to(torch.int32)
            for layer, orders in found.input_orders.items()
            for expert, order in enumerate(orders)
        }

    @property
    def _tag(self) -> str:
        permuted = "permuted" if self.permute else None
        parts = (self.method.replace("-", "_"), self.pattern.tag, permuted, self.schedule)
        return ".".join(part for part in parts if part)

    def _prune(self, spool: WeightSpool, dump: bool) -> _Found:
        found = _Found(dump)

        def settle(layer: int, weights: LayerWeights, outcome: Outcome) -> LayerWeights:
            spool.put(layer, weights.tensors)
            found.held_fast |= self.permute and not weights.reorders_hidden
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
                settle(layer, weights, by_magnitude_(weights, self._grouping(weights)))
                tick()
            return
        for scores in self.inputs.layers():
            weights = read_layer(reader, checkpoint, scores.layer)
            settle(scores.layer, weights, self._by_norms_(weights, scores.moments))
            tick()

    def _by_norms_(self, weights: LayerWeights, moments: Moments) -> Outcome:
        return by_norms_(weights, moments, self.method == "moe-pruner", self._grouping(weights))

    def _grouping(self, weights: LayerWeights) -> Grouping:
        hidden = self.permute and weights.reorders_hidden
        inputs = self.permute and not self.inputs.checkpoint.family.stacked
        return Grouping(self.pattern, hidden, inputs, self.inputs.seed)

    def _with_model(self, settle: Settle, tick: Tick) -> None:
        data, stream = self.inputs.need_data(f"--method {self.method}"), self.inputs.stream()

        def prune(seen: LayerInputs) -> LayerWeights:
            layer = seen.layer.index
            weights = read_layer(stream.reader, stream.checkpoint, layer)
            if self.method == "sparsegpt":
                outcome = by_sparsegpt_(weights, seen, self._grouping(weights))
            else:
                outcome = self._by_norms_(weights, seen.moments())
            return settle(layer, weights, outcome)

        run_schedule(stream, data.ids, self.schedule or "unpruned", prune, tick)


@dataclass(frozen=True)
class WeightOptions:
    """The options of the four."""

    sparsity: float | None = option(
        "share of each row's weights to zero, wherever they stand", metavar="SHARE"
    )
    pattern: str | None = option(
        "keep N of every M weights of a row: 16:32 (default), 8:32, 24:32, 2:4, 4:8, 6:8 ...; or "
        "unstructured, half of each row or as --sparsity says",
        metavar="N:M",
    )
    permute: bool | None = option(
        "group columns so that the pattern costs less: hidden channels change places, and "
        "input_orders.leanmoe says how input columns are grouped (default for M of 16 and more)",
        action=argparse.BooleanOptionalAction,
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
        _check_experts(inputs, method)
        check_changeable(inputs.checkpoint)
        pattern = read_pattern(options.sparsity, options.pattern)
        permute = _permutes(pattern, options.permute)
        shape = inputs.shape
        pattern.check(shape.hidden_size, f"the gate and up projections of {inputs.checkpoint.path}")
        pattern.check(shape.expert_ffn_size, f"the down projections of {inputs.checkpoint.path}")
        schedule = _schedule(request, options, inputs, method)
        return WeightPruner(
            method, inputs, pattern, schedule, permute, request.compress, request.out
        )

    return open_


def _check_experts(inputs: Inputs, method: str) -> None:
    """Raise where every layer was condensed to its shared expert, and nothing is to be zeroed."""
    checkpoint = inputs.checkpoint
    if not any(own.n_experts for own in checkpoint.layers.values()):
        raise InputError(
            f"{checkpoint.path} has no routed experts left, whose weights --method {method} "
            "zeroes; take the model that it was cut from"
        )


def _permutes(pattern: Pattern, wanted: bool | None) -> bool:
    """Published patterns are pruned as published unless asked otherwise."""
    if isinstance(pattern, OfEvery):
        return pattern.group >= PERMUTED_GROUP if wanted is None else wanted
    if wanted:
        raise InputError(
            "--permute groups columns for a pattern and nothing groups them here; give --pattern "
            "N:M or leave --permute out"
        )
    return False


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
        check_plain(inputs.checkpoint.reader, _expert_names(inputs), "--method sparsegpt")
        inputs.need_data("--method sparsegpt needs more of the activations than a bundle keeps")
    return schedule


def _expert_names(inputs: Inputs) -> Iterator[str]:
    for layer in inputs.checkpoint.layers:
        yield from experts(inputs.checkpoint, layer)


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
