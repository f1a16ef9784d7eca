"""What every method gives ``leanmoe prune``: its options, what it decides from, its decision.

A method is one module of this package with a ``METHOD``, named in ``registry.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.checkpoints.opening import check_runnable
from leanmoe_pruning.cutting.plan import LayerPlan
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.evaluation.redundancy import Probe
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import no_tick
from leanmoe_pruning.scores.bundle import ScoreBundle
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.passing import score_layers


@dataclass(frozen=True)
class Decision:
    """What is to become of the layers, and what a method decided on."""

    layers: dict[int, LayerPlan]
    # For --dump: tensors and facts under the names of the golden sets' README.
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    # Sentences the user should read; they go into the manifest too.
    notes: tuple[str, ...] = ()
    # What was found, for the manifest's settings.
    record: dict[str, Any] = field(default_factory=dict)
    # Final weights that stand in for the source's.
    replaced: WeightSpool | None = None
    # Called when the output is in its place: what was kept for going on can go.
    finished: Callable[[], None] = no_tick


@dataclass(frozen=True)
class Inputs:
    """The model and what a method may decide from, opened and checked."""

    checkpoint: Checkpoint
    source: dict[str, str]
    data: DataSet | None
    bundle: ScoreBundle | None
    compute: str | None
    seed: int
    # Looks at the scores that methods decide from.
    probe: Probe = field(default_factory=Probe)

    @property
    def shape(self) -> MoEShape:
        return self.checkpoint.shape

    def need_scores(self, method: str) -> None:
        """Raise where there is neither a bundle nor data to decide from."""
        check_runnable(self.checkpoint)
        if self.data is None and self.bundle is None:
            raise InputError(f"--method {method} decides from data; give --scores or --data SPEC")

    def need_data(self, reason: str) -> DataSet:
        """The data; raise with ``reason`` where the model must be run and there is none."""
        check_runnable(self.checkpoint)
        if self.data is None:
            raise InputError(f"{reason}; give --data SPEC")
        return self.data

    def stream(self) -> DecoderStream:
        return DecoderStream(self.checkpoint, self.compute)

    def layers(self) -> Iterator[LayerScores]:
        """Scores layer by layer, from the bundle or from a pass over the data."""
        return self.probe.watch(self._layers())

    def _layers(self) -> Iterator[LayerScores]:
        if self.bundle is not None:
            return self.bundle.layers(RouterRule.of(self.shape))
        assert self.data is not None, "need_scores was asked"
        return score_layers(self.stream(), self.data.ids, no_tick)

    @property
    def layout(self) -> list[tuple[int, int]]:
        """(windows, length) of each source that was scored."""
        if self.bundle is not None:
            return self.bundle.description.layout
        return [] if self.data is None else self.data.layout

    @property
    def computed_in(self) -> str:
        """The dtype of the products that decisions rest on."""
        if self.bundle is not None:
            return self.bundle.description.compute
        return str(self.stream().compute).removeprefix("torch.")

    @property
    def calibration(self) -> tuple[str, str] | None:
        """What was decided from and its digest."""
        if self.bundle is not None:
            return self.bundle.description.data, self.bundle.description.data_digest
        return None if self.data is None else (self.data.spec, self.data.digest())


class Chooser(Protocol):
    """A method with its options, checked and ready."""

    def settings(self) -> dict[str, Any]:
        """What the manifest records."""
        ...

    def decide(self, dump: bool) -> Decision:
        """Do the work; measure what only a dump wants where ``dump`` says so."""
        ...


Arguments = Callable[[argparse._ArgumentGroup], None]


@dataclass(frozen=True)
class Method:
    """One line of ``--method``."""

    name: str
    summary: str
    # Refuses, by InputError, whatever can be refused before any work.
    open: Callable[[argparse.Namespace, Inputs], Chooser]
    # Methods that share their options share this function.
    add_arguments: Arguments | None = None
    # Names of values, as argparse has them, that another method's options give and this one reads.
    also_takes: tuple[str, ...] = ()
    # What --variant may name, the first where it is not given; none where a method has no variants.
    variants: tuple[str, ...] = ()
    # False for methods that look at no data at all.
    reads_data: bool = True
    # Whether it takes --budget adaptive, and models whose layers hold differently many experts.
    shares_budget: bool = False
    takes_mixed: bool = False
    # Whether a plan can say all that it decides.
    plannable: bool = True
