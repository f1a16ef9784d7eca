"""Who evaluates individuals: this process, or several through Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from leanmoe.errors import InputError, LeanMoEError
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.eep.applied import Applied
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.progress import Tick
from leanmoe_pruning.quality.resident import ResidentModel
from leanmoe_pruning.quality.tasks.scoring import score_task
from leanmoe_pruning.quality.tasks.task import Task

# A candidate whose worker dies so often is not the machine's fault.
_MOST_DEATHS = 5


@dataclass(frozen=True)
class Judge:
    """A model in memory that answers each part of a task as an individual would."""

    model: ResidentModel
    applied: Applied
    parts: Mapping[str, Task]

    @classmethod
    def load(
        cls, path: Path, compute: str | None, applied: Applied, parts: Mapping[str, Task]
    ) -> Self:
        """Open the model; every worker does it once."""
        stream = DecoderStream(open_model(path), compute)
        return cls(ResidentModel.load(stream), applied, parts)

    @torch.inference_mode()
    def score(self, individual: Individual, part: str) -> float:
        """Accuracy from 0 to 100."""
        model = self.applied.to_model(self.model, individual)
        return 100.0 * score_task(model, self.parts[part]).accuracy


@dataclass(frozen=True)
class OwnProcess:
    """One worker, this process."""

    judge: Judge

    def __call__(self, members: Sequence[Individual], part: str, tick: Tick) -> list[float]:
        scores = []
        for member in members:
            scores.append(self.judge.score(member, part))
            tick()
        return scores

    def close(self) -> None:
        """Nothing to close."""


class RayWorkers:
    """Several workers of this machine. One that dies is replaced and its candidate asked again."""

    def __init__(self, count: int, load: tuple[Any, ...]) -> None:
        # Ray otherwise reports its use over the network.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise InputError(
                "--workers takes Ray, which is not installed: pip install 'leanmoe[search]', or "
                "leave --workers out"
            ) from None
        self._ray, self._load = ray, load
        threads = max(1, (os.cpu_count() or 1) // count)
        self._threads = threads
        ray.init(
            num_cpus=count,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
        self.actors = [self._start() for _ in range(count)]

    def _start(self) -> Any:
        return self._ray.remote(num_cpus=1)(RemoteJudge).remote(self._threads, *self._load)

    def __call__(self, members: Sequence[Individual], part: str, tick: Tick) -> list[float]:
        waiting = [(place, self._ask(place, member, part)) for place, member in enumerate(members)]
        scores = []
        for place, answer in waiting:
            scores.append(self._answer(place, answer, members[place], part))
            tick()
        return scores

    def _ask(self, place: int, member: Individual, part: str) -> Any:
        arrays = (member.experts.numpy(), member.router.numpy())
        return self.actors[place % len(self.actors)].score.remote(*arrays, part)

    def _answer(self, place: int, answer: Any, member: Individual, part: str) -> float:
        for _ in range(_MOST_DEATHS):
            try:
                return float(self._ray.get(answer))
            except self._ray.exceptions.RayActorError:
                self.actors[place % len(self.actors)] = self._start()
                answer = self._ask(place, member, part)
        raise LeanMoEError(
            f"{_MOST_DEATHS} workers died over one candidate, too little memory perhaps: each "
            "holds the whole model; give fewer --workers"
        )

    def close(self) -> None:
        """Stop the workers this object started."""
        self._ray.shutdown()


class RemoteJudge:
    """A ``Judge`` in a worker's process."""

    def __init__(self, threads: int, *load: Any) -> None:
        torch.set_num_threads(threads)
        self._judge = Judge.load(*load)

    def pid(self) -> int:
        """The worker's process."""
        return os.getpid()

    def score(self, experts: Any, router: Any, part: str) -> float:
        """As ``Judge.score``."""
        member = Individual(torch.tensor(experts), torch.tensor(router))
        return self._judge.score(member, part)
