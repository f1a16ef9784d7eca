"""Gradients passed back through a stream layer by layer: what a layer did is computed again.

N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd.graph import allow_mutation_on_saved_tensors

from leanmoe_pruning.forward.passes import run_block
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream

_LOGITS = 256  # tokens whose logits are held at a time


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients through code that adds in place: what is needed later is copied when changed."""
    with torch.enable_grad(), allow_mutation_on_saved_tensors():
        yield


def step_back(loss: torch.Tensor) -> None:
    """Gradients of everything ``loss`` was made from."""
    torch.autograd.backward([loss])


def carry(layer: DecoderLayer, hidden_NTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What leaves a layer, and its block's input ``[T, D]``; what enters stays as it is."""
    hidden_NTD = hidden_NTD.clone()
    layer.attend_(hidden_NTD)
    x_TD = layer.block_input(hidden_NTD)
    layer.add_(hidden_NTD, run_block(layer, hidden_NTD)[0])
    return hidden_NTD, x_TD


def mean_of_logits(
    stream: DecoderStream,
    final_ND: torch.Tensor,
    of_rows: Callable[[torch.Tensor, slice], torch.Tensor],
) -> tuple[float, torch.Tensor]:
    """The mean of a loss of logits, a few rows at a time, and its gradient ``[N, D]``.

    ``of_rows`` gives the sum of the loss over rows, of their logits ``[rows, V]``.
    """
    total, parts = 0.0, []
    for start in range(0, len(final_ND), _LOGITS):
        rows = slice(start, start + _LOGITS)
        with gradients():
            part_ND = final_ND[rows].detach().requires_grad_()
            loss = of_rows(stream.logits(part_ND), rows)
            step_back(loss / len(final_ND))
        assert part_ND.grad is not None
        parts.append(part_ND.grad)
        total += float(loss.detach()) / len(final_ND)
    return total, torch.cat(parts)
