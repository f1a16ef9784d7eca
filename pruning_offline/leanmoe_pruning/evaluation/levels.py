"""All skip levels of a curve, by every rule asked for, run through the model at once.

Each layer is loaded once: the calibration text passes it exactly and leaves what gives the layer's
betas, then the held-out text passes it once per variant, a rule at a level, with those betas.
L variants, N windows, T tokens, D model, K top-k, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from leanmoe.skip_rule import SkipRule, threshold_of
from leanmoe_pruning.evaluation.comparison import WindowSums, compare_window
from leanmoe_pruning.evaluation.expert_factors import factors_of
from leanmoe_pruning.forward.experts import OutputNorms
from leanmoe_pruning.forward.passes import Hidden, embed_all, step_
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.skipping import factors_tensor
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.layer_scores import median_beta, weight_ratios

Ratios = np.ndarray[tuple[int], np.dtype[np.float32]]
ThresholdsOf = Callable[[int], Sequence[float]]
FactorsOf = Callable[[int], torch.Tensor | None]
# Successive multiples of it, less whole numbers, lie far from each other.
_GOLDEN = (5**0.5 - 1) / 2


class Variant(NamedTuple):
    """One run of the held-out text."""

    rule: SkipRule
    level: float


def variants_of(rules: Sequence[SkipRule], levels: Sequence[float]) -> list[Variant]:
    """Every rule at every level; level 0 is the same by all and stands once, first."""
    rest = [Variant(rule, level) for rule in rules for level in levels if level > 0.0]
    return [Variant(rules[0], 0.0), *rest]


def level_grid(count: int) -> list[float]:
    """``count`` levels from 0 to 1 at equal distances."""
    return [round(index / (count - 1), 6) for index in range(count)]


def beta_at(ratios: Ratios, level: float) -> float:
    """The ``level``-quantile of the ratios: that share of non-top assignments is skipped."""
    if level in (0.0, 1.0) or len(ratios) == 0:
        return float(level)
    return float(np.quantile(ratios.astype(np.float64), level))


def judged_ratios(routing: Routing, factors: Sequence[float]) -> Ratios:
    """w_j f_j over the token's largest, of every routed assignment but that one, flat."""
    judged_TK = routing.judged(factors_tensor(list(factors))).sort(-1, descending=True).values
    return np.asarray((judged_TK[:, 1:] / judged_TK[:, :1]).flatten().numpy(), dtype=np.float32)


def static_beta(level: float, top_k: int, place: int, places: int) -> float:
    """The static rule's beta in the ``place``-th of ``places`` layers.

    ``level`` of all assignments but each token's first are skipped, as by the other rules: where
    that is no whole number per token, some layers skip one more. These lie spread over the depth,
    and a higher level never skips fewer anywhere.
    """
    if top_k < 2:
        return level
    turns = [(index * _GOLDEN) % 1.0 for index in range(places)]
    turn = (sorted(turns).index(turns[place]) + 0.5) / places
    return int(level * (top_k - 1) + turn) / (top_k - 1)


@dataclass
class Betas:
    """Thresholds per decoder layer, for each variant and by the published median rule.

    ``layers`` are those that can skip, in order; ``factors`` the norm rule's, filled as layers
    are added unless given.
    """

    variants: Sequence[Variant]
    layers: Sequence[int] = ()
    factors: dict[int, list[float]] = field(default_factory=dict)
    by_layer: dict[int, list[float]] = field(default_factory=dict)
    top_k: dict[int, int] = field(default_factory=dict)
    median: dict[int, float] = field(default_factory=dict)

    def add(self, layer: int, routing: Routing, norms: OutputNorms | None = None) -> None:
        """Take a layer that routes; condensed ones have no betas."""
        if norms is not None and layer not in self.factors:
            self.factors[layer] = factors_of(norms.means, norms.tokens_E)
        ratios = {SkipRule.RATIO: weight_ratios(routing)}
        if layer in self.factors:
            ratios[SkipRule.NORM] = judged_ratios(routing, self.factors[layer])
        self.top_k[layer] = routing.weights_TK.shape[1]
        self.by_layer[layer] = [self._beta(layer, one, ratios) for one in self.variants]
        self.median[layer] = median_beta(routing)

    def _beta(self, layer: int, one: Variant, ratios: Mapping[SkipRule, Ratios]) -> float:
        if one.rule is SkipRule.TOPK:
            place, places = list(self.layers).index(layer), len(self.layers)
            return static_beta(one.level, self.top_k[layer], place, places)
        return beta_at(ratios[one.rule], one.level)

    def at(self, index: int) -> dict[int, float]:
        """Betas by layer of the ``index``-th variant."""
        return {layer: betas[index] for layer, betas in self.by_layer.items()}

    def thresholds(self, layer: int) -> list[float]:
        """What that layer's tokens are held against, for each variant."""
        return [
            threshold_of(one.rule, beta, self.top_k[layer])
            for one, beta in zip(self.variants, self.by_layer[layer], strict=True)
        ]

    def factors_of(self, layer: int) -> torch.Tensor | None:
        """float32 ``[E]``, where the norm rule is among the variants."""
        return factors_tensor(self.factors[layer]) if layer in self.factors else None


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

    def advance(
        self,
        layer: DecoderLayer,
        thresholds: Sequence[float],
        factors_E: torch.Tensor | None = None,
    ) -> None:
        """One decoder layer; ``thresholds`` holds this layer's for each level."""
        betas_T = torch.tensor(thresholds)[self._level_of_T] if layer.skips else None
        routed = step_(layer, self.hidden, betas_T=betas_T, factors_E=factors_E)
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
    stream: DecoderStream,
    ids: Sequence[torch.Tensor],
    thresholds_of: ThresholdsOf,
    n_levels: int,
    factors_of: FactorsOf = lambda layer: None,
) -> LevelPass:
    """Carry ``ids`` through the whole model with given thresholds per layer and level."""
    levels = LevelPass(stream, ids, n_levels)
    for layer in stream.layers():
        thresholds = thresholds_of(layer.index) if layer.skips else ()
        levels.advance(layer, thresholds, factors_of(layer.index))
    return levels


def calibrate_and_run(
    stream: DecoderStream,
    calibration: Sequence[torch.Tensor],
    heldout: Sequence[torch.Tensor],
    variants: Sequence[Variant],
    tick: Tick,
    factors: Mapping[int, list[float]] | None = None,
) -> tuple[Betas, LevelPass]:
    """Betas from ``calibration`` and the activations of ``heldout`` by every variant.

    The norm rule's ``factors`` are measured on the calibration text unless given.
    """
    betas = Betas(variants, stream.checkpoint.skip_layers, dict(factors or {}))
    by_norm = any(one.rule is SkipRule.NORM for one in variants)
    exact = embed_all(stream, calibration)
    run = LevelPass(stream, heldout, len(variants))
    for layer in stream.layers():
        norms = OutputNorms(len(layer.experts)) if by_norm and layer.experts is not None else None
        routed = step_(layer, exact, norms=norms)
        thresholds: list[float] = []
        if routed is not None and layer.skips:
            betas.add(layer.index, routed.routing, norms)
            thresholds = betas.thresholds(layer.index)
        run.advance(layer, thresholds, betas.factors_of(layer.index))
        tick()
    return betas, run
