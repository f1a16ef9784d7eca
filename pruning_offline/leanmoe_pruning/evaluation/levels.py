"""All skip levels of a curve run through the model at once.

Each layer is loaded once: the calibration text passes it exactly and leaves the
weight ratios that give the layer's betas, then the held-out text passes it once per
level with those betas. L levels, N windows, T tokens, D model, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from leanmoe_pruning.evaluation.comparison import WindowSums, compare_window
from leanmoe_pruning.forward.passes import Hidden, embed_all, step_
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.layer_scores import median_beta, weight_ratios

BetasOf = Callable[[int], Sequence[float]]


def level_grid(count: int) -> list[float]:
    """``count`` levels from 0 to 1 at equal distances."""
    return [round(index / (count - 1), 6) for index in range(count)]


def beta_at(ratios: np.ndarray[tuple[int], np.dtype[np.float32]], level: float) -> float:
    """The ``level``-quantile of the ratios: that share of non-top assignments is skipped."""
    if level in (0.0, 1.0) or len(ratios) == 0:
        return float(level)
    return float(np.quantile(ratios.astype(np.float64), level))


@dataclass
class Betas:
    """Thresholds per decoder layer, for each level and by the published median rule."""

    levels: Sequence[float]
    by_layer: dict[int, list[float]] = field(default_factory=dict)
    median: dict[int, float] = field(default_factory=dict)

    def add(self, layer: int, routing: Routing) -> None:
        """Take a layer that routes; condensed ones have no betas."""
        ratios = weight_ratios(routing)
        self.by_layer[layer] = [beta_at(ratios, level) for level in self.levels]
        self.median[layer] = median_beta(routing)

    def at(self, index: int) -> dict[int, float]:
        """Betas by layer at the ``index``-th level."""
        return {layer: betas[index] for layer, betas in self.by_layer.items()}


class LevelPass:
    """Held-out text carried through the layers at several levels side by side."""

    def __init__(self, stream: DecoderStream, ids: Sequence[torch.Tensor], n_levels: int) -> None:
        self.stream = stream
        self.ids = list(ids)
        self.n_levels = n_levels
        self.hidden: Hidden = [part.repeat(n_levels, 1, 1) for part in embed_all(stream, self.ids)]
        self._level_of_T = torch.cat(
            [torch.arange(n_levels).repeat_interleave(part.numel()) for part in self.ids]
        )
        self.skipped: dict[int, list[int]] = {}

    @property
    def tokens(self) -> int:
        """Held-out tokens per level."""
        return sum(part.numel() for part in self.ids)

    @property
    def routed(self) -> dict[int, int]:
        """Routed assignments per level, by layer."""
        layers = self.stream.checkpoint.layers
        return {layer: self.tokens * layers[layer].top_k for layer in self.skipped}

    def advance(self, layer: DecoderLayer, betas: Sequence[float]) -> None:
        """One decoder layer; ``betas`` holds this layer's threshold for each level."""
        betas_T = torch.tensor(betas)[self._level_of_T] if layer.skips else None
        routed = step_(layer, self.hidden, betas_T=betas_T)
        if routed is None or betas_T is None:
            return
        skipped_T = (~routed.keep_TK).sum(-1)
        counts = torch.zeros(self.n_levels, dtype=torch.int64)
        self.skipped[layer.index] = counts.scatter_add_(0, self._level_of_T, skipped_T).tolist()

    def skip_rate(self, index: int) -> float:
        """Share of routed assignments skipped at one level, over all layers."""
        skipped = sum(counts[index] for counts in self.skipped.values())
        return skipped / max(1, sum(self.routed.values()))

    def measure(self, tick: Tick) -> list[WindowSums]:
        """Compare every level with the first, window by window."""
        sums = [WindowSums() for _ in range(self.n_levels)]
        for ids_NT, part in zip(self.ids, self.hidden, strict=True):
            by_level = part.view(self.n_levels, *ids_NT.shape, -1)
            for window, ids_T in enumerate(ids_NT):
                compare_window(self.stream, by_level[:, window], ids_T, sums)
                tick()
        return sums


def run_levels(
    stream: DecoderStream, ids: Sequence[torch.Tensor], betas_of: BetasOf, n_levels: int
) -> LevelPass:
    """Carry ``ids`` through the whole model with given betas per layer and level."""
    levels = LevelPass(stream, ids, n_levels)
    for layer in stream.layers():
        levels.advance(layer, betas_of(layer.index) if layer.skips else ())
    return levels


def calibrate_and_run(
    stream: DecoderStream,
    calibration: Sequence[torch.Tensor],
    heldout: Sequence[torch.Tensor],
    levels: Sequence[float],
    tick: Tick,
) -> tuple[Betas, LevelPass]:
    """Betas from ``calibration`` and the activations of ``heldout`` at every level."""
    betas = Betas(levels)
    exact = embed_all(stream, calibration)
    run = LevelPass(stream, heldout, len(levels))
    for layer in stream.layers():
        routed = step_(layer, exact)
        if routed is not None and layer.skips:
            betas.add(layer.index, routed.routing)
        run.advance(layer, betas.by_layer.get(layer.index, ()))
        tick()
    return betas, run
