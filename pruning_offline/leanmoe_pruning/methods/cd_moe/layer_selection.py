"""Which layers are condensed: greedy, those chosen before stay condensed.

Step by step the layer joins whose condensation leaves the hidden state after the final norm
closest to the original's. The stream in front of every candidate is kept, so a candidate runs
from its own block to the end; documents come in waves, and a candidate whose sum exceeds the
best one's is given up, which changes no choice because a sum never falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.cd_moe.calibration import Blocks, Calibration
from leanmoe_pruning.methods.cd_moe.condensed_layer import Condensed, finish_, pass_
from leanmoe_pruning.methods.cd_moe.divergence import Documents, channel_shares, divergence
from leanmoe_pruning.methods.cd_moe.memory import Layers, Scratch
from leanmoe_pruning.methods.cd_moe.search_cost import Work
from leanmoe_pruning.progress import Tick


@dataclass(frozen=True)
class LayerOrder:
    """Decoder layers as they joined; ``js_SL`` has a column per MoE layer, NaN where not known."""

    order: tuple[int, ...]
    step_js: tuple[float, ...]
    js_SL: torch.Tensor


class LayerSearch:
    """One search; ``wanted`` says what each MoE layer would be condensed to."""

    def __init__(
        self,
        stream: DecoderStream,
        layers: Layers,
        documents: Documents,
        calibration: Calibration,
        wanted: Mapping[int, Condensed],
        scratch: Scratch,
        work: Work,
    ) -> None:
        self._stream, self._layers, self._documents = stream, layers, documents
        self._final, self._wanted = calibration.final, wanted
        self._scratch, self._work = scratch, work
        # The stream in front of each candidate's block, under what is condensed so far.
        self._attended = {layer: facts.attended for layer, facts in calibration.facts.items()}
        self._condensed: dict[int, Condensed] = {}
        self._candidates = sorted(wanted)

    def run(self, steps: int, exhaustive: bool, tick: Tick) -> LayerOrder:
        """``exhaustive`` measures every candidate to the end; the choice is the same."""
        columns = {layer: column for column, layer in enumerate(self._candidates)}
        js_SL = torch.full((steps, len(columns)), math.nan, dtype=torch.float64)
        order: list[int] = []
        step_js: list[float] = []
        for step in range(steps):
            sums = self._all() if exhaustive else self._best_only()
            for layer, total in sums.items():
                js_SL[step, columns[layer]] = total / self._documents.count
            total, layer = min((total, layer) for layer, total in sums.items())
            order.append(layer)
            step_js.append(total / self._documents.count)
            self._take(layer, step + 1 < steps)
            tick()
        return LayerOrder(tuple(order), tuple(step_js), js_SL)

    def _all(self) -> dict[int, float]:
        sums = dict.fromkeys(self._candidates, 0.0)
        for wave in self._documents.waves:
            self._add(sums, self._candidates, wave)
        return sums

    def _best_only(self) -> dict[int, float]:
        """Sums of the candidates that reach the end: the best is among them.

        The one that leads after the first wave goes ahead, so that there is a bound for others.
        """
        sums = dict.fromkeys(self._candidates, 0.0)
        first, *rest = self._documents.waves
        self._add(sums, self._candidates, first)
        leader = min(self._candidates, key=lambda layer: (sums[layer], layer))
        for wave in rest:
            self._add(sums, [leader], wave)
        left = [layer for layer in self._candidates if layer != leader]
        for wave in rest:
            left = [layer for layer in left if sums[layer] <= sums[leader]]
            self._add(sums, left, wave)
        return {layer: sums[layer] for layer in (leader, *left)}

    def _add(self, sums: dict[int, float], candidates: Sequence[int], wave: Iterable[int]) -> None:
        """Add to each candidate's sum what the documents of a wave give."""
        for layer, held in self._run(candidates, wave).items():
            for index, hidden in held.items():
                reached_TD = channel_shares(self._stream.final_norm(hidden.flatten(0, 1)))
                of_token_T = divergence(self._final[index], reached_TD)
                sums[layer] += self._documents.blocks[index].sum_of_means(of_token_T)

    def _run(
        self, candidates: Sequence[int], wave: Iterable[int]
    ) -> dict[int, dict[int, torch.Tensor]]:
        """Final hidden states by candidate and block; every layer is loaded once for all."""
        states: dict[int, dict[int, torch.Tensor]] = {}
        for layer in self._layers.following(min(candidates)) if candidates else ():
            for held in states.values():
                for hidden in held.values():
                    pass_(layer, hidden, self._condensed.get(layer.index))
                    self._work.layer(hidden[..., 0].numel())
            if layer.index in candidates:
                held = {index: self._attended[layer.index][index].clone() for index in wave}
                for hidden in held.values():
                    finish_(layer, hidden, self._wanted[layer.index])
                    self._work.layer(hidden[..., 0].numel())
                states[layer.index] = held
        return states

    def _take(self, chosen: int, more: bool) -> None:
        """Condense a layer for good, and carry the stream on to the candidates behind it."""
        hidden = [block.clone() for block in self._attended.pop(chosen)]
        self._condensed[chosen] = self._wanted[chosen]
        self._candidates.remove(chosen)
        if not more or max(self._candidates) < chosen:
            return
        last = max(self._candidates)
        for layer in self._layers.following(chosen):
            if layer.index != chosen:
                for block in hidden:
                    layer.attend_(block)
            if layer.index in self._candidates:
                self._attended[layer.index] = self._kept(hidden)
            self._work.layer(self._documents.tokens)
            if layer.index == last:
                return
            for block in hidden:
                finish_(layer, block, self._condensed.get(layer.index))

    def _kept(self, hidden: Blocks) -> Blocks:
        return [self._scratch.tensor(*block.shape).copy_(block) for block in hidden]
