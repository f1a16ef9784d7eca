"""What every method gives ``leanmoe prune``: its options, what it decides from, its decision.

A method is one module of this package with a ``METHOD``, named in ``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.budgets.domains import Domains
from leanmoe_pruning.checkpoints.opening import OpenedModel, check_runnable
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.data import DataSet
from leanmoe_pruning.data.spec import parse_spec
from leanmoe_pruning.evaluation.redundancy import TOKENS, LayerSample
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.request import Asked, Request
from leanmoe_pruning.progress import Tick, no_tick, progress
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
    # What it saw of the scores, for the probe of redundancy; where it kept nothing of them, the
    # probe looks itself.
    samples: Sequence[LayerSample] = ()
    # Nats per token that its predictions are expected to diverge by, where it was decided by that;
    # else the probe finds out, where the scores can tell.
    divergence: float | None = None
    # Final weights that stand in for the source's.
    replaced: WeightSpool | None = None
    # With them, how input columns of experts are grouped now, int32 [D] by the names of
    # leanmoe.input_orders; None where the weights are the source's, and so are its orders.
    input_orders: Mapping[str, torch.Tensor] | None = None
    # Where work is kept that the same run goes on from, until the output is in its place.
    kept: Path | None = None


@dataclass(frozen=True)
class Inputs:
    """The model and what a method may decide from, opened and checked."""

    checkpoint: OpenedModel
    source: dict[str, str]
    data: DataSet | None
    bundle: ScoreBundle | None
    compute: str | None
    seed: int

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

    def layers(self, tick: Tick = no_tick) -> Iterator[LayerScores]:
        """Scores layer by layer, from the bundle or from a pass over the data, which takes long
        and calls ``tick`` after each of the model's layers."""
        if self.bundle is not None:
            return self.bundle.layers(RouterRule.of(self.shape))
        assert self.data is not None, "need_scores was asked"
        return score_layers(self.stream(), self.data.ids, tick)

    def samples(self) -> list[LayerSample]:
        """A look at every layer's scores, on a few windows of each source; empty without any."""
        if self.bundle is not None:
            return [LayerSample.of(scores) for scores in self.layers()]
        if self.data is None:
            return []
        few = [ids_NT[: -(-TOKENS // ids_NT.shape[1])] for ids_NT in self.data.ids]
        stream = self.stream()
        with progress("looking at redundancy", stream.n_layers) as tick:
            return [LayerSample.of(scores) for scores in score_layers(stream, few, tick)]

    @property
    def layout(self) -> list[tuple[int, int]]:
        """(windows, length) of each source that was scored."""
        if self.bundle is not None:
            return self.bundle.description.layout
        return [] if self.data is None else self.data.layout

    @property
    def domains(self) -> Domains:
        """The sources that were scored."""
        calibration = self.calibration
        assert calibration is not None, "need_scores was asked"
        names = tuple(item.name for item in parse_spec(calibration[0]))
        if len(names) != len(self.layout):
            raise InputError(
                f"the bundle's data {calibration[0]!r} has {len(names)} parts and its windows "
                f"{len(self.layout)}; score again"
            )
        return Domains(names, tuple(self.layout))

    def check_spread(self, asked: Asked) -> None:
        """Raise where ``--spread`` needs several domains and there is one."""
        if asked == "effects":
            raise InputError(
                "--spread effects is for --method naee, which compares sets of experts"
            )
        if asked != "experts":
            self.domains.check_several("--spread" if asked == "auto" else f"--spread {asked}")

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


Options = TypeVar("Options")


@dataclass(frozen=True)
class Method(Generic[Options]):
    """One line of ``--method``."""

    name: str
    summary: str
    # Refuses, by InputError, whatever can be refused before any work.
    open: Callable[[Request, Options, Inputs], Chooser]
    # A frozen dataclass; methods that share their options share it.
    options: type[Options]
    # What --variant may name, the first where it is not given; none where a method has no variants.
    variants: tuple[str, ...] = ()
    # False for methods that look at no data at all.
    reads_data: bool = True
    # Whether it takes --budget adaptive, and models whose layers hold differently many experts.
    shares_budget: bool = False
    # Whether it takes --spread.
    spreads: bool = False
    takes_mixed: bool = False
    # Whether a plan can say all that it decides.
    plannable: bool = True
    # Whether it decides which experts stay, as they are: only then can others get stand-ins.
    selects: bool = False
