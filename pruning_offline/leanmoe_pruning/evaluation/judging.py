"""Tasks judged by our own scorer or by lm-eval, one model after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leanmoe.errors import InputError
from leanmoe.extras import install_hint
from leanmoe.files.digest import bytes_digest
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.data.tasks.loading import load_tasks
from leanmoe_pruning.data.tasks.task import Task
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_result import TaskResult
from leanmoe_pruning.evaluation.task_scoring import score_tasks, steps
from leanmoe_pruning.forward.skipping import Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import Tick, progress

BACKENDS = ("own", "lm-eval")


class Judge(Protocol):
    """Tasks that were found and read."""

    @property
    def generates(self) -> bool:
        """Whether text is generated, which takes many passes."""
        ...

    @property
    def steps(self) -> int:
        """How often ``judge`` calls its ``tick``, about."""
        ...

    def digest(self) -> str | None:
        """What is asked, or ``None`` where the judge cannot tell whether it changed."""
        ...

    def judge(self, model: ResidentModel, tick: Tick) -> list[TaskResult]:
        """Every task's result."""
        ...


@dataclass(frozen=True)
class OwnJudge:
    """Our own scorer."""

    tasks: Sequence[Task]

    @property
    def generates(self) -> bool:
        return not all(task.has_choices for task in self.tasks)

    @property
    def steps(self) -> int:
        return sum(map(steps, self.tasks))

    def digest(self) -> str | None:
        return bytes_digest(f"{task.name} {task.digest()}\n".encode() for task in self.tasks)

    def judge(self, model: ResidentModel, tick: Tick) -> list[TaskResult]:
        return score_tasks(model, self.tasks, tick)


def make_judge(specs: str, backend: str, include_path: Path | None) -> Judge:
    """Read the tasks of ``--tasks`` for a ``--backend``."""
    if backend == "own":
        if include_path is not None:
            raise InputError("--include-path is for --backend lm-eval; give that, or drop it")
        return OwnJudge(load_tasks(specs))
    with no_hub("--backend lm-eval", " or use --backend own"):
        from leanmoe_pruning.evaluation.harness import HarnessTasks

    return HarnessTasks(specs, include_path)


@contextmanager
def no_hub(what: str, otherwise: str = "") -> Iterator[None]:
    """For importing lm-eval: ``InputError`` where it is missing, and no task asks a hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")  # before the import
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs the package {error.name}, which is not installed; run "
            f"{install_hint('tasks')}{otherwise}"
        ) from None


def judge_model(
    judge: Judge, checkpoint: OpenedModel, skipping: Skipping, compute: str | None
) -> list[TaskResult]:
    """Results of one model, which is held in memory only where text is generated."""
    stream = DecoderStream(checkpoint, compute)
    name = checkpoint.path.name
    if judge.generates:
        with progress(f"{name}: layers", stream.n_layers) as tick:
            model = ResidentModel.load(stream, tick)
    else:
        model = ResidentModel.streamed(stream)
    with progress(f"{name}: tasks", judge.steps) as tick:
        return judge.judge(model.changed(skipping=skipping), tick)
