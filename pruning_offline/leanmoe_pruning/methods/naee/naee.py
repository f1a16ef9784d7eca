"""``--method naee``: its options, its run, its dump."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.evaluation.ratios import LayerRatios
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.methods.gate_ratios import measure_model_ratios, ratio_tensors
from leanmoe_pruning.methods.method import Chooser, Decision, Inputs, Method
from leanmoe_pruning.methods.naee.adaptive import open_adaptive
from leanmoe_pruning.methods.naee.naee_options import (
    NaeeOptions,
    search_notes,
    search_of,
    search_settings,
)
from leanmoe_pruning.methods.naee.naee_spread import open_spread
from leanmoe_pruning.methods.naee.subsets import Search, layerwise, progressive
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.selection import (
    LayerChoice,
    complement,
    plans_of,
    pruned_subsets,
)
from leanmoe_pruning.methods.unreached import Unreached
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.layer_scores import LayerScores

VARIANTS = ("layerwise", "progressive")


@dataclass
class _Seen:
    """What is kept of the scores that pass: ratios of the whole model, a sample of any."""

    full: list[LayerRatios] = field(default_factory=list)
    samples: list[LayerSample] = field(default_factory=list)
    unreached: Unreached = field(default_factory=Unreached)

    def sample(self, scores: LayerScores) -> None:
        self.samples.append(LayerSample.of(scores))
        self.unreached.add(scores)

    def whole(self, layers: Iterable[LayerScores]) -> Iterator[LayerScores]:
        for scores in layers:
            self.full.append(LayerRatios.of(scores.layer, scores.routing()))
            self.sample(scores)
            yield scores


@dataclass(frozen=True)
class Naee:
    """A checked run."""

    inputs: Inputs
    keep: int
    variant: str
    batch_size: int
    search: Search

    def settings(self) -> dict[str, Any]:
        fixed = {"keep": self.keep, "variant": self.variant, "batch_size": self.batch_size}
        return {**fixed, **search_settings(self.search)}

    def decide(self, dump: bool) -> Decision:
        seen = _Seen()
        choices = list(self._choices(seen))
        tensors, facts = self._evidence(choices, seen.full) if dump else ({}, {})
        notes = (*search_notes(self.search, self.inputs.shape), *seen.unreached.notes())
        return Decision(plans_of(choices), tensors, facts, notes, samples=seen.samples)

    def _choices(self, seen: _Seen) -> Iterator[LayerChoice]:
        batches = batch_of_tokens(self.inputs.layout, self.batch_size)
        with progress("naee: choosing experts", self.inputs.shape.n_layers) as tick:
            if self.variant == "layerwise":
                layers = seen.whole(self.inputs.layers())
                for choice in layerwise(layers, self.keep, batches, self.search):
                    tick()
                    yield choice
                return
            data = self.inputs.need_data("the progressive variant runs the model as it prunes")
            stream = self.inputs.stream()
            yield from progressive(
                stream, data.ids, self.keep, batches, self.search, tick, seen.sample
            )

    def _evidence(
        self, choices: Sequence[LayerChoice], full: list[LayerRatios]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        run = f"{self.variant}_r{self.keep}"
        ratios = measure_model_ratios(self.inputs, run, choices, full)
        tensors = {
            f"{run}.kept": torch.tensor([choice.kept for choice in choices]),
            **self._losses(run, choices),
            **ratio_tensors(ratios),
        }
        betas = {name: [one.beta for one in found] for name, found in ratios.items()}
        split = self._batch_split()
        return tensors, {"batch_split": split, run: self._facts(choices, split), "betas": betas}

    def _losses(self, run: str, choices: Sequence[LayerChoice]) -> dict[str, torch.Tensor]:
        """Of every subset where all were tried, else of what was chosen."""
        losses = [choice.losses for choice in choices if choice.losses is not None]
        if not losses:
            chosen = [choice.loss for choice in choices]
            return {f"{run}.loss": torch.tensor(chosen, dtype=torch.float64)}
        shape = self.inputs.shape
        subsets = pruned_subsets(shape.n_routed_experts, self.keep, shape.n_groups)
        return {
            f"dropped_subsets.r{self.keep}": _int_rows(subsets),
            f"{run}.losses": torch.stack(losses),
        }

    def _facts(self, choices: Sequence[LayerChoice], split: list[int]) -> dict[str, Any]:
        count = self.inputs.shape.n_routed_experts
        return {
            "r": self.keep,
            "batch_split": split,
            "dropped": [list(complement(choice.kept, count)) for choice in choices],
            "kept": [list(choice.kept) for choice in choices],
            "best_loss": [choice.loss for choice in choices],
        }

    def _batch_split(self) -> list[int]:
        size = self.batch_size
        return [
            min(size, windows - start)
            for windows, _ in self.inputs.layout
            for start in range(0, windows, size)
        ]


def _int_rows(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), -1)


def _open(request: Request, options: NaeeOptions, inputs: Inputs) -> Chooser:
    if request.spread is not None:
        return open_spread(request, options, inputs)
    if request.adaptive or request.total_bytes is not None:
        return open_adaptive(request, options, inputs)
    keep = request.experts_to_keep(inputs.checkpoint)
    variant = request.variant_of(VARIANTS)
    if variant == "progressive":
        _check_progressive(inputs)
    inputs.need_scores("naee")
    search = search_of(options, inputs.shape, [keep])
    return Naee(inputs, keep, variant, options.batch_size, search)


def _check_progressive(inputs: Inputs) -> None:
    inputs.need_data("the progressive variant runs the model again as it prunes")
    if inputs.bundle is not None:
        raise InputError(
            "--variant progressive decides from --data alone, whose batches are not those of "
            f"{inputs.bundle.directory}; leave --scores out"
        )


METHOD = Method(
    name="naee",
    summary="the subset of experts that changes each layer's output least",
    open=_open,
    options=NaeeOptions,
    shares_budget=True,
    spreads=True,
    variants=VARIANTS,
    selects=True,
)
