"""One prune run: what it decides from, what it decides, and how it is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.manifest import Manifest, Source
from leanmoe.provenance import tool_versions
from leanmoe_pruning.bundle import ScoreBundle
from leanmoe_pruning.data import DataSet, batch_of_tokens
from leanmoe_pruning.dump import Ratios, write_dump
from leanmoe_pruning.methods import baselines, naee
from leanmoe_pruning.methods.selection import Kept, LayerChoice
from leanmoe_pruning.plan import LayerPlan, PrunePlan
from leanmoe_pruning.progress import Tick, progress
from leanmoe_pruning.recalibrate import LayerRatios, measure_ratios
from leanmoe_pruning.scoring import LayerScores, score_layers
from leanmoe_pruning.stream import DecoderStream

METHODS = ("naee", "frequency", "random")
PLANNED = "plan"
VARIANTS = ("layerwise", "progressive")


@dataclass(frozen=True)
class Choosing:
    """How experts are chosen."""

    method: str
    keep: int | None
    variant: str
    batch_size: int
    seed: int

    @property
    def needs_forward(self) -> bool:
        """True where a score bundle is not enough."""
        return self.method == "naee" and self.variant == "progressive"

    @property
    def run_name(self) -> str:
        """The name of a run in dumps."""
        return f"{self.variant if self.method == 'naee' else self.method}_r{self.keep}"

    def settings(self) -> dict[str, Any]:
        """What the manifest records."""
        if self.method == PLANNED:
            return {}
        settings: dict[str, Any] = {"keep": self.keep}
        if self.method == "naee":
            settings |= {"variant": self.variant, "batch_size": self.batch_size}
        if self.method == "random":
            settings["seed"] = self.seed
        return settings


@dataclass
class PruneJob:
    """A checked run; exactly one of ``data``, ``bundle`` and ``plan``, or neither for random."""

    checkpoint: Checkpoint
    source: dict[str, str]
    choosing: Choosing
    data: DataSet | None
    bundle: ScoreBundle | None
    compute: str | None
    plan: PrunePlan | None = None
    ratios: Ratios = field(default_factory=dict)

    @property
    def _layout(self) -> list[tuple[int, int]]:
        if self.bundle is not None:
            return self.bundle.description.layout
        return self.data.layout if self.data is not None else []

    def _running(self) -> tuple[DecoderStream, DataSet]:
        assert self.data is not None
        return DecoderStream(self.checkpoint, self.compute), self.data

    def choices(self, tick: Tick) -> Iterator[LayerChoice]:
        """Decide layer by layer, in order."""
        how, shape = self.choosing, self.checkpoint.shape
        if self.plan is not None:
            return (LayerChoice(i, plan.kept) for i, plan in sorted(self.plan.layers.items()))
        assert how.keep is not None
        if how.method == "random":
            return baselines.at_random(shape, how.keep, how.seed)
        if how.method == "frequency":
            return baselines.frequency(self._scores(tick), shape, how.keep)
        batches = batch_of_tokens(self._layout, how.batch_size)
        if how.variant == "layerwise":
            return naee.layerwise(self._scores(tick), shape, how.keep, batches)
        stream, data = self._running()
        return naee.progressive(stream, data.ids, how.keep, batches, tick)

    def plans(self, choices: Sequence[LayerChoice]) -> dict[int, LayerPlan]:
        """What the cutter is to do."""
        if self.plan is not None:
            return self.plan.layers
        return {choice.layer: LayerPlan(keep=choice.kept) for choice in choices}

    def _scores(self, tick: Tick) -> Iterator[LayerScores]:
        """Layer scores from the bundle or the model; the full model's ratios noted in passing."""
        found = self.ratios.setdefault("full", [])
        for scores in self._score_source():
            found.append(LayerRatios.of(scores.layer, scores.routing(self.checkpoint.shape)))
            yield scores
            tick()

    def _score_source(self) -> Iterator[LayerScores]:
        if self.bundle is not None:
            return self.bundle.layers()
        stream, data = self._running()
        return score_layers(stream, data.ids, lambda: None)

    def manifest(self, choices: Sequence[LayerChoice], files: dict[str, str]) -> Manifest:
        """The record beside the output."""
        calibration, digest = self._calibration()
        return Manifest(
            family=self.checkpoint.family.name,
            source=Source(name=self.checkpoint.path.resolve().name, files=self.source),
            method=self.choosing.method,
            settings={**self.choosing.settings(), **self._computed_in(), **self._planned()},
            kept=self._kept(choices),
            calibration=calibration,
            calibration_digest=digest,
            tools=tool_versions(),
            files=files,
        )

    def _kept(self, choices: Sequence[LayerChoice]) -> dict[int, list[int]]:
        """Source experts by layer; those of layers that a plan does not name are all of them."""
        whole = {} if self.plan is None else self.checkpoint.layers
        every = {layer: list(range(own.n_experts)) for layer, own in whole.items()}
        named = {choice.layer: list(choice.kept) for choice in choices}
        return {i: kept for i, kept in sorted({**every, **named}.items()) if kept}

    def _planned(self) -> dict[str, Any]:
        """The plan, and what was done to the source before it."""
        if self.plan is None:
            return {}
        before = self.checkpoint.manifest
        history = None if before is None or before.method == "none" else before
        told = {} if history is None else {"before": history.model_dump(exclude={"curve", "files"})}
        return {"plan": self.plan.model_dump(mode="json", exclude_none=True), **told}

    def _computed_in(self) -> dict[str, str]:
        """The dtype of the products that decisions rest on."""
        if self.choosing.method in ("random", PLANNED):
            return {}
        if self.bundle is not None:
            return {"compute": self.bundle.description.compute}
        return {"compute": str(self._running()[0].compute).removeprefix("torch.")}

    def _calibration(self) -> tuple[str | None, str | None]:
        if self.choosing.method in ("random", PLANNED):
            return None, None
        if self.bundle is not None:
            return self.bundle.description.data, self.bundle.description.data_digest
        assert self.data is not None
        return self.data.spec, self.data.digest()

    def dump(self, target: Path, choices: Sequence[LayerChoice], force: bool) -> None:
        """Write what was decided on; betas of the pruned model only where there is data."""
        shape, run = self.checkpoint.shape, self.choosing.run_name
        everything = tuple(range(shape.n_routed_experts))
        self._measure_ratios("full", dict.fromkeys(shape.moe_layers, everything))
        self._measure_ratios(run, {choice.layer: choice.kept for choice in choices})
        write_dump(target, shape, run, choices, self.ratios, self._batch_split(), force)

    def _measure_ratios(self, name: str, kept: Kept) -> None:
        if self.data is None or name in self.ratios:
            return
        stream, data = self._running()
        with progress(f"betas of {name}", stream.n_layers) as tick:
            self.ratios[name] = measure_ratios(stream, data.ids, kept, tick)

    def _batch_split(self) -> list[int]:
        size = self.choosing.batch_size
        return [
            min(size, windows - start)
            for windows, _ in self._layout
            for start in range(0, windows, size)
        ]
