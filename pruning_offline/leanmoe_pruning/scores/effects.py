"""What each expert's output does to the model's predictions, token by token.

The loss is the log loss of next tokens, summed: of tokens drawn from the model's own distributions,
or of those that the text has. With g its gradient by what a block adds to a token, the effect of
expert e is g . f_e(x), per unit of router weight. Routing changed from w to w' then changes the
loss by d = sum_e (w'_e - w_e) effect_e to first order, d summed over layers.

Of drawn tokens, half the mean of d^2 is to second order the KL divergence of the changed model:
Fisher information along the change, each token by itself (Fisher pruning, arXiv 1801.05787). Of the
text's, the mean of d + d^2 / 2 is what the log loss of the text grows by, the curvature taken from
the same gradients (empirical Fisher). T tokens, S sampled ones, D model, E experts, N windows,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from leanmoe.files.resuming import Unfinished
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.forward.backward import carry, gradients, mean_of_logits, step_back
from leanmoe_pruning.forward.heap import hand_back_freed_memory
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.scores.activations import (
    entering_file,
    portions,
    read_activations,
    write_activations,
)

EFFECTS = "effects"
# Which next tokens a loss is of: drawn ones, by their seed, or those of the text.
NextTokens = int | Literal["text"]
_NONE = -100  # what ``cross_entropy`` passes over: the last token of a window has no next one


def effects_file(layer: int) -> str:
    """The name of one layer's file, beside that of its other scores."""
    return f"effects-{layer:03d}.safetensors"


def effects_into(
    unfinished: Unfinished,
    stream: DecoderStream,
    ids: list[torch.Tensor],
    sampled: torch.Tensor,
    next_tokens: NextTokens,
    tick: Tick,
) -> None:
    """Leave every MoE layer's effects in ``unfinished.output``; go on where a run stopped.

    ``score_into`` has passed all layers and kept what entered each. The last layer comes first;
    each is committed with the gradient that enters it, so memory holds one layer's weights.
    """
    held, size, n_layers = portions(ids), stream.shape.hidden_size, stream.n_layers
    if unfinished.step == n_layers:
        final = read_activations(unfinished.folder / entering_file(n_layers), held)
        passed = _gradients_of_predictions(stream, final, _losses(ids, next_tokens))
        write_activations(unfinished.folder / _gradient_file(n_layers), held, size, passed)
    for _ in range(unfinished.step - n_layers):
        tick()
    for index in reversed(range(2 * n_layers - unfinished.step)):
        back = _Back(stream.layer(index), sampled)
        passed = back.through(
            read_activations(unfinished.folder / entering_file(index), held),
            read_activations(unfinished.folder / _gradient_file(index + 1), held),
        )
        path = unfinished.folder / _gradient_file(index)
        files = {name: unfinished.files[name] for name in _still_needed(unfinished, index)}
        files[path.name] = write_activations(path, held, size, passed)
        if back.effects:
            name, effects_SE = effects_file(index), torch.cat(back.effects)
            files[f"output/{name}"] = write_tensors(unfinished.output / name, {EFFECTS: effects_SE})
        unfinished.commit(2 * n_layers - index, files)
        tick()


def _still_needed(unfinished: Unfinished, index: int) -> Iterator[str]:
    """Committed files that count after layer ``index``: the bundle's, and what entered before."""
    entering = {entering_file(before) for before in range(index)}
    return (name for name in unfinished.files if name in entering or name.startswith("output/"))


def _gradient_file(layer: int) -> str:
    return f"gradients-{layer:03d}.safetensors"


def _gradients_of_predictions(
    stream: DecoderStream, final: Iterator[tuple[torch.Tensor, slice]], loss_of: _Losses
) -> Iterator[torch.Tensor]:
    """The loss's gradient by what leaves the last layer, portion by portion, ``[N, T, D]``."""
    for hidden_NTD, rows in final:
        final_ND = hidden_NTD.flatten(0, 1)
        _, mean_ND = mean_of_logits(stream, final_ND, loss_of(rows))
        yield (mean_ND * len(final_ND)).view_as(hidden_NTD)


_Loss = Callable[[torch.Tensor, slice], torch.Tensor]
# The loss of a portion's logits ``[N, V]``, a few rows at a time; the portion by its tokens.
_Losses = Callable[[slice], _Loss]


def _losses(ids: list[torch.Tensor], next_tokens: NextTokens) -> _Losses:
    if next_tokens == "text":
        following = [functional.pad(ids_NT[:, 1:], (0, 1), value=_NONE) for ids_NT in ids]
        return _Text(torch.cat([each_NT.flatten() for each_NT in following])).of_portion
    return _Drawing(next_tokens).of_portion


@dataclass(frozen=True)
class _Drawing:
    """Next tokens drawn from what the model predicts."""

    seed: int

    def of_portion(self, portion: slice) -> _Loss:
        # Of each portion, so that a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed((self.seed << 32) + portion.start)

        def loss(logits_NV: torch.Tensor, _: slice) -> torch.Tensor:
            with torch.no_grad():
                drawn_N1 = logits_NV.softmax(-1).multinomial(1, generator=generator)
            return functional.cross_entropy(logits_NV, drawn_N1[:, 0], reduction="sum")

        return loss


@dataclass(frozen=True)
class _Text:
    """Next tokens as the text has them, of every token."""

    following_T: torch.Tensor

    def of_portion(self, portion: slice) -> _Loss:
        following_N = self.following_T[portion]

        def loss(logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
            return functional.cross_entropy(
                logits_NV, following_N[rows], reduction="sum", ignore_index=_NONE
            )

        return loss


class _Back:
    """One layer passed backwards, the effects of its experts gathered."""

    def __init__(self, layer: DecoderLayer, sampled: torch.Tensor) -> None:
        self._layer, self._sampled = layer, sampled
        # Of each portion, float32 [S, E]; none of a dense layer.
        self.effects: list[torch.Tensor] = []

    def through(
        self,
        entering: Iterator[tuple[torch.Tensor, slice]],
        leaving: Iterator[tuple[torch.Tensor, slice]],
    ) -> Iterator[torch.Tensor]:
        """The gradient by what enters, from that by what leaves, portion by portion."""
        for (hidden_NTD, rows), (gradient_NTD, _) in zip(entering, leaving, strict=True):
            x_TD = self._step_(hidden_NTD, gradient_NTD)
            self._take(x_TD, gradient_NTD.flatten(0, 1), rows)
            hand_back_freed_memory()
            assert hidden_NTD.grad is not None
            yield hidden_NTD.grad

    def _step_(self, hidden_NTD: torch.Tensor, gradient_NTD: torch.Tensor) -> torch.Tensor:
        """Give what enters its gradient; the block's input ``[T, D]``."""
        with gradients():
            hidden_NTD.requires_grad_()
            leaving_NTD, x_TD = carry(self._layer, hidden_NTD)
            step_back((leaving_NTD * gradient_NTD).sum())
        return x_TD.detach()

    def _take(self, x_TD: torch.Tensor, gradient_TD: torch.Tensor, rows: slice) -> None:
        if (experts := self._layer.experts) is None:
            return
        inside = (self._sampled >= rows.start) & (self._sampled < rows.stop)
        own = self._sampled[inside] - rows.start
        x_SD, gradient_SD = x_TD[own], gradient_TD[own] * self._layer.residual_scale
        each = ((experts.output(e, x_SD) * gradient_SD).sum(-1) for e in range(len(experts)))
        self.effects.append(torch.stack([*each], dim=1))
