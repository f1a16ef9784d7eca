"""What a layer's student experts are to say: the teacher's outputs on the teacher's routed tokens.

T tokens, D model, K top-k, n tokens routed to one expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.stream import DecoderLayer


@dataclass(frozen=True)
class ExpertLesson:
    """Rows among all tokens, ascending, and the teacher's output there ``[n, D]``."""

    rows: torch.Tensor
    target_nD: torch.Tensor


def lessons(
    layer: DecoderLayer, inputs: Iterable[torch.Tensor], ancestors: tuple[int, ...]
) -> list[ExpertLesson]:
    """One per student expert, from the teacher's block inputs ``[T, D]`` in order."""
    assert layer.experts is not None
    parts: list[list[ExpertLesson]] = [[] for _ in ancestors]
    start = 0
    for x_TD in inputs:
        ids_TK = layer.route(layer.router_logits(x_TD)).ids_TK
        for found, expert in zip(parts, ancestors, strict=True):
            rows = (ids_TK == expert).any(-1).nonzero().flatten()
            # Products ran in the weights' dtype: nothing is lost by keeping it.
            target_nD = layer.experts.output(expert, x_TD[rows]).to(layer.experts.dtype)
            found.append(ExpertLesson(rows + start, target_nD))
        start += len(x_TD)
    return [_joined(found) for found in parts]


def _joined(found: list[ExpertLesson]) -> ExpertLesson:
    rows = torch.cat([one.rows for one in found])
    return ExpertLesson(rows, torch.cat([one.target_nD for one in found]))


def expert_losses(
    experts: Experts, x_TD: torch.Tensor, held: list[ExpertLesson]
) -> dict[int, torch.Tensor]:
    """Mean squared error of each student expert that has tokens."""
    return {
        expert: functional.mse_loss(
            experts.output(expert, x_TD[lesson.rows]), lesson.target_nD.float()
        )
        for expert, lesson in enumerate(held)
        if len(lesson.rows)
    }
