"""Distillation of the whole model: next-token loss plus the expert-wise one (arXiv 2410.12013).

L = L_CE + lambda * sum over layers and experts of MSE(teacher's output, student's output), the
experts of both on the tokens that the teacher's router sends there, each in its own stream of
hidden states; lambda = L_CE / L_expert of the first step that reaches an expert, then fixed. What
passes back is recomputed layer by layer, and a layer is updated as soon as its gradients are known,
so those of one layer are held at a time. Without a teacher the loss is L_CE alone.

Where routers alone are trained, it is KL(teacher || student) of the next token instead, mean over
all tokens: the text needs no right answer (router distillation, arXiv 2603.02217).
N windows, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from leanmoe_pruning.distillation.lesson import ExpertLesson, expert_losses, lessons
from leanmoe_pruning.distillation.lineage import Ancestors
from leanmoe_pruning.distillation.settings import Settings, update
from leanmoe_pruning.distillation.student import StudentStream
from leanmoe_pruning.forward.backward import carry, gradients, mean_of_logits, step_back
from leanmoe_pruning.forward.heap import hand_back_freed_memory
from leanmoe_pruning.forward.passes import run_block, step_
from leanmoe_pruning.forward.stream import DecoderStream

Lessons = dict[int, list[ExpertLesson]]


@dataclass(frozen=True)
class StepLoss:
    """Both terms of one step, the expert-wise one without its factor; text is KL for routers."""

    text: float
    experts: float


@dataclass
class Progress:
    """Where training stands: what a checkpoint holds beside the weights."""

    step: int = 0
    factor: float | None = None
    losses: list[StepLoss] = field(default_factory=list)


class WholeModel:
    """Student, optimisers and, where there is one, teacher."""

    def __init__(
        self,
        student: StudentStream,
        teacher: DecoderStream | None,
        ancestors: Ancestors,
        settings: Settings,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.settings, self._ancestors = settings, ancestors
        self.trained = [i for i in range(student.n_layers) if student.trained(i)]
        parameters = {layer: student.start(layer) for layer in self.trained}
        self.optimisers = {layer: settings.optimiser(own) for layer, own in parameters.items()}
        self._scales = {layer: settings.scale(own) for layer, own in parameters.items()}
        self.progress = Progress()

    @torch.no_grad()
    def advance(self, windows: Sequence[torch.Tensor]) -> StepLoss:
        """One update on a batch of windows ``[N, T]`` of one length."""
        ids_NT = torch.stack(list(windows))
        held, heard_NTD = self._listen(ids_NT)
        entering, final_NTD = self._forward(ids_NT)
        text, gradient_NTD = self._loss(final_NTD, heard_NTD, ids_NT)
        if self.progress.factor is None:
            total = self._expert_loss(entering, held)
            # Not before there is such a loss: a batch may reach none of the experts.
            self.progress.factor = text / total if total else None
        experts = 0.0
        for layer in reversed(range(self.student.n_layers)):
            own = held.get(layer, [])
            gradient_NTD, loss = self._back(layer, entering.pop(), gradient_NTD, own)
            experts += loss
        found = StepLoss(text, experts)
        self.progress.losses.append(found)
        self.progress.step += 1
        hand_back_freed_memory()
        return found

    @torch.no_grad()
    def measure(self, windows: Sequence[torch.Tensor]) -> StepLoss:
        """Both terms on a batch of windows ``[N, T]`` of one length; nothing is updated."""
        ids_NT = torch.stack(list(windows))
        held, heard_NTD = self._listen(ids_NT)
        entering, final_NTD = self._forward(ids_NT)
        text, _ = self._loss(final_NTD, heard_NTD, ids_NT)
        return StepLoss(text, self._expert_loss(entering, held))

    def _loss(
        self, final_NTD: torch.Tensor, heard_NTD: torch.Tensor, ids_NT: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """The term that is taken of logits, and its gradient ``[N, T, D]``."""
        if self.settings.routers_alone:
            return self._divergence(final_NTD, heard_NTD)
        return self._text_loss(final_NTD, ids_NT)

    def _listen(self, ids_NT: torch.Tensor) -> tuple[Lessons, torch.Tensor]:
        """What the teacher's experts say of these windows, by layer, and what leaves its last."""
        found: Lessons = {}
        if self.teacher is None:
            return found, torch.empty(0)
        hidden = self.teacher.embed(ids_NT)
        for layer in self.teacher.layers():
            if not layer.experts or self.settings.routers_alone:
                step_(layer, [hidden])
                continue
            layer.attend_(hidden)
            experts = self._ancestors.get(layer.index)
            if experts is not None and layer.index in self.optimisers:
                found[layer.index] = lessons(layer, [layer.block_input(hidden)], experts)
            layer.add_(hidden, run_block(layer, hidden)[0])
        return found, hidden

    def _forward(self, ids_NT: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What enters each layer, and what leaves the last."""
        hidden_NTD, entering = self.student.embed(ids_NT), []
        for index in range(self.student.n_layers):
            entering.append(hidden_NTD)
            hidden_NTD = carry(self.student.layer(index), hidden_NTD)[0]
        return entering, hidden_NTD

    def _text_loss(
        self, final_NTD: torch.Tensor, ids_NT: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """Mean loss of the known next tokens, and its gradient ``[N, T, D]``."""
        next_N = ids_NT[:, 1:].flatten()

        def of_rows(logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
            return functional.cross_entropy(logits_NV, next_N[rows], reduction="sum")

        total, gradient_ND = mean_of_logits(self.student, final_NTD[:, :-1].flatten(0, 1), of_rows)
        gradient_NTD = torch.zeros_like(final_NTD)
        gradient_NTD[:, :-1] = gradient_ND.view(len(ids_NT), -1, final_NTD.shape[-1])
        return total, gradient_NTD

    def _divergence(
        self, final_NTD: torch.Tensor, heard_NTD: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """Mean KL from the teacher's next-token distributions, and its gradient ``[N, T, D]``."""
        teacher, heard_ND = self.teacher, heard_NTD.flatten(0, 1)
        assert teacher is not None, "the settings were checked"

        def of_rows(logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
            with torch.no_grad():
                wanted_NV = teacher.log_probabilities(heard_ND[rows])
            found_NV = logits_NV.log_softmax(-1)
            return functional.kl_div(found_NV, wanted_NV, reduction="sum", log_target=True)

        total, gradient_ND = mean_of_logits(self.student, final_NTD.flatten(0, 1), of_rows)
        return total, gradient_ND.view_as(final_NTD)

    def _expert_loss(self, entering: list[torch.Tensor], held: Lessons) -> float:
        """The expert-wise term without its factor."""
        total = 0.0
        for index, own in held.items():
            layer = self.student.layer(index)
            _, x_TD = carry(layer, entering[index])
            assert layer.experts is not None, "the student's layers are the teacher's"
            total += sum(map(float, expert_losses(layer.experts, x_TD, own).values()))
        return total

    def _back(
        self,
        index: int,
        entering_NTD: torch.Tensor,
        gradient: torch.Tensor,
        own: list[ExpertLesson],
    ) -> tuple[torch.Tensor, float]:
        """Pass a gradient back through one layer and update it; the layer's expert-wise loss."""
        with gradients():
            entering_NTD = entering_NTD.detach().requires_grad_()
            layer = self.student.layer(index)
            leaving_NTD, x_TD = carry(layer, entering_NTD)
            # One scalar whose gradient is that of the later layers plus that of the own term.
            loss = (leaving_NTD * gradient).sum()
            experts = torch.zeros(())
            if own and layer.experts:
                losses = expert_losses(layer.experts, x_TD, own)
                experts = sum(losses.values(), experts)
                loss = loss + (self.progress.factor or 0.0) * experts
            step_back(loss)
        if index in self.optimisers:
            rate = self.settings.rate(self.progress.step, self._scales[index])
            update(self.optimisers[index], rate)
        assert entering_NTD.grad is not None
        return entering_NTD.grad, float(experts.detach())


def batches(
    ids: Sequence[torch.Tensor], settings: Settings, first: int
) -> Iterator[list[torch.Tensor]]:
    """The batch of every step from ``first`` on: epochs of windows in seeded order.

    A batch holds windows of one length, so an epoch's last batches may be smaller.
    """
    step, epoch = 0, 0
    while True:
        for batch in _epoch(ids, settings, epoch):
            if step >= first:
                yield batch
            step += 1
        epoch += 1


def _epoch(
    ids: Sequence[torch.Tensor], settings: Settings, epoch: int
) -> Iterator[list[torch.Tensor]]:
    windows = [window for source in ids for window in source]
    order = torch.randperm(len(windows), generator=settings.generator(epoch)).tolist()
    waiting: dict[int, list[torch.Tensor]] = {}
    for place in order:
        same = waiting.setdefault(len(windows[place]), [])
        same.append(windows[place])
        if len(same) == settings.batch:
            yield waiting.pop(len(windows[place]))
    yield from waiting.values()
