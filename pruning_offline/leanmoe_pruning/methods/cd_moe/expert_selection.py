"""Which experts a condensed layer keeps: greedy, one layer at a time.

Step by step the expert joins that brings the decoder layer's output, residual included,
closest to the original's; the other layers are as they were. Everything needed is the layer's
own input, so each f_e(x) is computed once per block of documents, and only when asked for.
T tokens, D model, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from leanmoe_pruning.forward.stream import DecoderLayer
from leanmoe_pruning.methods.cd_moe.condensed_layer import RoutedWeights, shared_output
from leanmoe_pruning.methods.cd_moe.divergence import Documents, channel_shares, divergence
from leanmoe_pruning.methods.cd_moe.memory import Scratch
from leanmoe_pruning.methods.cd_moe.search_cost import Work

# The vector of a decoder layer's output that is compared: as it is, or after the final norm.
View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertOrder:
    """Experts as they joined; ``js_SE`` is NaN for those in already or given up early."""

    order: tuple[int, ...]
    step_js: tuple[float, ...]
    js_SE: torch.Tensor
    shared_only_js: float


class ExpertSearch:
    """One layer's search; ``attended`` and ``outputs`` are blocks ``[N, T, D]``."""

    def __init__(
        self,
        layer: DecoderLayer,
        documents: Documents,
        attended: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        weights: RoutedWeights,
        view: View,
        work: Work,
        scratch: Scratch,
    ) -> None:
        self._layer, self._documents, self._view, self._work = layer, documents, view, work
        self._constants: list[float] = weights.means.tolist()
        self._promise: list[float] = (-weights.weight_E).tolist()
        self._inputs = [layer.block_input(block) for block in attended]
        self._targets = [channel_shares(view(block.flatten(0, 1))) for block in outputs]
        self._current = [block.flatten(0, 1).clone() for block in attended]
        for current_TD, x_TD in zip(self._current, self._inputs, strict=True):
            layer.add_(current_TD, shared_output(layer, x_TD, weights.shared_gate))
        self._count = len(self._constants)
        self._scratch = scratch
        self._outputs: list[torch.Tensor | None] = [None] * len(self._inputs)
        self._known: set[tuple[int, int]] = set()

    def run(self, steps: int, exhaustive: bool) -> ExpertOrder:
        """``exhaustive`` measures every candidate to the end; the choice is the same."""
        shared_only = self._sum(None, math.inf)
        assert shared_only is not None
        js_SE = torch.full((steps, self._count), math.nan, dtype=torch.float64)
        order: list[int] = []
        step_js: list[float] = []
        for step in range(steps):
            best, expert = self._best(set(order), exhaustive, js_SE[step])
            order.append(expert)
            step_js.append(best / self._documents.count)
            self._take(expert)
        return ExpertOrder(tuple(order), tuple(step_js), js_SE, shared_only / self._documents.count)

    def _best(self, taken: set[int], exhaustive: bool, js_E: torch.Tensor) -> tuple[float, int]:
        """The least sum and its expert; equal sums go to the lowest number."""
        best = (math.inf, self._count)
        left = [expert for expert in range(self._count) if expert not in taken]
        for expert in sorted(left, key=lambda one: (self._promise[one], one)):
            found = self._sum(expert, math.inf if exhaustive else best[0])
            if found is not None:
                js_E[expert] = found / self._documents.count
                best = min(best, (found, expert))
        return best

    def _sum(self, expert: int | None, bound: float) -> float | None:
        """Sum over documents with one more expert, or ``None`` once it exceeds ``bound``."""
        total = 0.0
        for index, block in enumerate(self._documents.blocks):
            reached_TD = self._current[index]
            if expert is not None:
                reached_TD = self._with(expert, index)
            of_token_T = divergence(self._targets[index], channel_shares(self._view(reached_TD)))
            total += block.sum_of_means(of_token_T)
            if total > bound:
                self._remember(expert, total)
                return None
        self._remember(expert, total)
        return total

    def _remember(self, expert: int | None, seen: float) -> None:
        """Candidates that came close are tried first next time, so that others are given up."""
        if expert is not None:
            self._promise[expert] = seen

    def _with(self, expert: int, index: int) -> torch.Tensor:
        reached_TD = self._current[index].clone()
        self._layer.add_(reached_TD, self._output(expert, index) * self._constants[expert])
        return reached_TD

    def _output(self, expert: int, index: int) -> torch.Tensor:
        """f_expert(x) of one block, computed when first asked for."""
        x_TD = self._inputs[index]
        held = self._outputs[index]
        if held is None:
            held = self._outputs[index] = self._scratch.tensor(self._count, *x_TD.shape)
        if (expert, index) not in self._known:
            assert self._layer.experts is not None
            held[expert] = self._layer.experts.output(expert, x_TD)
            self._known.add((expert, index))
            self._work.expert(self._layer, len(x_TD))
        return held[expert]

    def _take(self, expert: int) -> None:
        self._current = [self._with(expert, index) for index in range(len(self._current))]
