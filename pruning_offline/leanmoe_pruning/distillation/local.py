"""Distillation layer by layer: each expert regresses its teacher's outputs, no pass back.

The teacher runs once; at every MoE layer the student's experts see the teacher's inputs on the
teacher's routed tokens and are trained there and then, so only one layer of either model is in
memory. The loss of an expert is divided by its targets' mean square, which leaves its minimum
where it is and makes layers alike to the optimiser. T tokens, D model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict

from leanmoe_pruning.distillation.lesson import ExpertLesson, expert_losses, lessons
from leanmoe_pruning.distillation.lineage import Ancestors
from leanmoe_pruning.distillation.settings import Settings, update
from leanmoe_pruning.distillation.student import StudentStream
from leanmoe_pruning.forward.backward import gradients, step_back
from leanmoe_pruning.forward.heap import hand_back_freed_memory
from leanmoe_pruning.forward.passes import Hidden, chunks, embed_all, run_block, step_
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import Tick


class LayerCourse(BaseModel):
    """A layer's relative squared error: on one batch before and after, and step by step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: float
    after: float
    curve: list[float]
    unreached: list[int] = []
    """Experts of the student that no token was routed to: nothing was to be learnt there."""


@dataclass(frozen=True)
class TrainedLayer:
    """A layer's final tensors, and how they came about."""

    layer: int
    tensors: dict[str, torch.Tensor]
    course: LayerCourse


@torch.no_grad()
def distill_layers(
    teacher: DecoderStream,
    student: StudentStream,
    ids: Sequence[torch.Tensor],
    ancestors: Ancestors,
    settings: Settings,
    finished: frozenset[int],
    tick: Tick,
) -> Iterator[TrainedLayer]:
    """Every MoE layer that has something to learn, in order; ``finished`` ones are passed by."""
    hidden = embed_all(teacher, ids)
    for layer in teacher.layers():
        if not layer.experts:
            step_(layer, hidden)
            tick()
            continue
        for chunk_NTD, _ in chunks(hidden):
            layer.attend_(chunk_NTD)
        experts = ancestors.get(layer.index)
        if experts is not None and student.trained(layer.index) and layer.index not in finished:
            yield _train(layer, student, hidden, experts, settings)
            hand_back_freed_memory()
        for chunk_NTD, _ in chunks(hidden):
            layer.add_(chunk_NTD, run_block(layer, chunk_NTD)[0])
        tick()


def _train(
    layer: DecoderLayer,
    student: StudentStream,
    hidden: Hidden,
    experts: tuple[int, ...],
    settings: Settings,
) -> TrainedLayer:
    x_TD = torch.cat([layer.block_input(chunk) for chunk, _ in chunks(hidden)])
    course = _Course(lessons(layer, [x_TD], experts), x_TD.to(student.compute))
    tokens = settings.batch * max(part.shape[1] for part in hidden)
    parameters = student.start(layer.index)
    optimiser, scale = settings.optimiser(parameters), settings.scale(parameters)
    generator = settings.generator(layer.index)
    probe = course.draw(tokens, settings.generator(0))
    before, curve = float(course.loss(student, layer.index, probe)), []
    for step in range(settings.steps):
        with gradients():
            loss = course.loss(student, layer.index, course.draw(tokens, generator))
            if loss.requires_grad:  # no expert has a token of this batch otherwise
                step_back(loss)
        update(optimiser, settings.rate(step, scale))
        curve.append(float(loss.detach()))
    student.settle(layer.index)
    after = float(course.loss(student, layer.index, probe))
    found = LayerCourse(before=before, after=after, curve=curve, unreached=course.unreached())
    return TrainedLayer(layer.index, student.stop(layer.index), found)


class _Course:
    """All tokens of one layer with what is to be said of them."""

    def __init__(self, held: list[ExpertLesson], x_TD: torch.Tensor) -> None:
        self._held, self._x_TD = held, x_TD
        self._scales = [float(one.target_nD.float().square().mean()) or 1.0 for one in held]

    def unreached(self) -> list[int]:
        """Experts of the student without a token."""
        return [expert for expert, one in enumerate(self._held) if not len(one.rows)]

    def draw(self, tokens: int, generator: torch.Generator) -> torch.Tensor:
        """A batch of tokens at random, as a mask over all."""
        chosen = torch.zeros(len(self._x_TD), dtype=torch.bool)
        chosen[torch.randperm(len(self._x_TD), generator=generator)[:tokens]] = True
        return chosen

    def loss(self, student: StudentStream, layer: int, chosen: torch.Tensor) -> torch.Tensor:
        """Mean over experts of squared error over mean square."""
        batch = []
        for one in self._held:
            mine = chosen[one.rows]
            batch.append(ExpertLesson(one.rows[mine], one.target_nD[mine]))
        experts = student.layer(layer).experts
        assert experts is not None, "the student's layers are the teacher's"
        losses = expert_losses(experts, self._x_TD, batch)
        total = sum((loss / self._scales[e] for e, loss in losses.items()), torch.zeros(()))
        return total / max(1, len(losses))
