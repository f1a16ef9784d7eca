"""Fitness: how many items of a task an individual answers right, by a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch

from leanmoe_pruning.checkpoints.opening import open_headers
from leanmoe_pruning.data.tasks.task import Task
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_scoring import score_task
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.merged_model import Applied
from leanmoe_pruning.methods.eep.published_formula import Negatives, counting

# Enough to tell whether negative probabilities are chosen at all.
_COUNTED_ITEMS = 32


@dataclass(frozen=True)
class Load:
    """All that a judge is made of, small enough to be sent to other processes."""

    path: Path
    compute: str | None
    applied: Applied
    parts: Mapping[str, Task]


@dataclass(frozen=True)
class Judge:
    """A model in memory that answers each part of a task as an individual would."""

    model: ResidentModel
    applied: Applied
    parts: Mapping[str, Task]

    @classmethod
    def of(cls, load: Load) -> Self:
        """Open the model and hold it."""
        stream = DecoderStream(open_headers(load.path), load.compute)
        return cls(ResidentModel.load(stream), load.applied, load.parts)

    @torch.inference_mode()
    def score(self, individual: Individual, part: str) -> float:
        """Accuracy from 0 to 100."""
        model = self.applied.to_model(self.model, individual)
        return 100.0 * score_task(model, self.parts[part]).accuracy

    @torch.inference_mode()
    def negatives(self, individual: Individual, part: str) -> Negatives:
        """What is chosen of negative probability on the first items, each run without padding."""
        counts = Negatives()
        model = self.applied.to_model(self.model, individual)
        mapped = {
            layer.index: counting(layer, counts)
            for layer in model.layers
            if layer.transfer is not None
        }
        if mapped:
            task, counted = self.parts[part], model.changed(layers=mapped)
            for item in task.items[:_COUNTED_ITEMS]:
                score_task(counted, replace(task, items=(item,)))
        return counts


class Evaluator(Protocol):
    """Gives individuals their scores; one object per search."""

    def scores(self, members: Sequence[Individual], part: str) -> Iterator[float]:
        """Accuracies from 0 to 100 in the order of ``members``, each as soon as it is known."""
        ...

    def negatives(self, member: Individual, part: str) -> Negatives:
        """As ``Judge.negatives``."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class OwnProcess:
    """One worker, this process."""

    def __init__(self, load: Load) -> None:
        self._judge = Judge.of(load)

    def scores(self, members: Sequence[Individual], part: str) -> Iterator[float]:
        """As ``Evaluator.scores``."""
        return (self._judge.score(member, part) for member in members)

    def negatives(self, member: Individual, part: str) -> Negatives:
        """As ``Judge.negatives``."""
        return self._judge.negatives(member, part)

    def close(self) -> None:
        """Nothing to close."""
