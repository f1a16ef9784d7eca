"""``--method naee``: its options, its run, its dump."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.evaluation.ratios import LayerRatios
from leanmoe_pruning.methods.evidence import measure_model_ratios, ratio_tensors
from leanmoe_pruning.methods.method import Chooser, Decision, Inputs, Method
from leanmoe_pruning.methods.naee.adaptive import open_adaptive
from leanmoe_pruning.methods.naee.options import (
    add_arguments,
    check_batch_size,
    search_notes,
    search_of,
    search_settings,
)
from leanmoe_pruning.methods.naee.search import Search, layerwise, progressive
from leanmoe_pruning.methods.options import experts_to_keep, variant_of
from leanmoe_pruning.methods.selection import (
    LayerChoice,
    complement,
    dropped_subsets,
    plans_of,
)
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.layer_scores import LayerScores

VARIANTS = ("layerwise", "progressive")


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
        full: list[LayerRatios] = []
        choices = list(self._choices(full))
        tensors, facts = self._evidence(choices, full) if dump else ({}, {})
        notes = search_notes(self.search, self.inputs.shape)
        return Decision(plans_of(choices), tensors, facts, notes)

    def _choices(self, full: list[LayerRatios]) -> Iterator[LayerChoice]:
        batches = batch_of_tokens(self.inputs.layout, self.batch_size)
        with progress("naee: choosing experts", self.inputs.shape.n_layers) as tick:
            if self.variant == "layerwise":
                layers = _noting_ratios(self.inputs.layers(), full)
                for choice in layerwise(layers, self.keep, batches, self.search):
                    tick()
                    yield choice
                return
            data = self.inputs.need_data("the progressive variant runs the model as it prunes")
            stream = self.inputs.stream()
            yield from progressive(stream, data.ids, self.keep, batches, self.search, tick)

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
        subsets = dropped_subsets(shape.n_routed_experts, self.keep, shape.n_groups)
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


def _noting_ratios(
    layers: Iterator[LayerScores], found: list[LayerRatios]
) -> Iterator[LayerScores]:
    for scores in layers:
        found.append(LayerRatios.of(scores.layer, scores.routing()))
        yield scores


def _open(args: argparse.Namespace, inputs: Inputs) -> Chooser:
    check_batch_size(args.batch_size)
    if args.budget == "adaptive" or args.total_bytes is not None:
        return open_adaptive(args, inputs)
    keep = experts_to_keep(args, inputs)
    variant = variant_of(args, VARIANTS)
    if variant == "progressive":
        inputs.need_data("the progressive variant runs the model again as it prunes")
    inputs.need_scores("naee")
    search = search_of(args, inputs.shape, [keep])
    return Naee(inputs, keep, variant, args.batch_size, search)


METHOD = Method(
    name="naee",
    summary="the subset of experts that changes each layer's output least",
    open=_open,
    add_arguments=add_arguments,
    shares_budget=True,
    variants=VARIANTS,
)
