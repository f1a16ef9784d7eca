"""EEP's workers through Ray: real processes, which this test starts and one of which it kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import ray
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import LeanMoEError
from leanmoe_pruning.data.tasks.loading import load_task
from leanmoe_pruning.methods.eep.fitness import Judge, Load
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.merged_model import Applied, stored_dtype
from leanmoe_pruning.methods.eep.workers import RayWorkers
from tests.tiny import write_tiny_mixtral
from tests.tiny_tasks import write_choices


@pytest.fixture(scope="module")
def load(tmp_path_factory) -> Load:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "model").mkdir()
    write_tiny_mixtral(folder / "model", layers=2)
    task = load_task(str(write_choices(folder / "task.jsonl")))
    stored = stored_dtype(open_checkpoint(folder / "model"))
    return Load(folder / "model", None, Applied({0: 0, 1: 1}, 2, stored), {"train": task})


def members() -> list[Individual]:
    eye = torch.eye(8).repeat(2, 1, 1)
    mixed = eye[:, [1, 6, 7]] + 0.1 * eye[:, [0, 2, 3]]
    return [Individual(eye[:, rows], eye[:, rows]) for rows in ([0, 1, 2], [3, 4, 5])] + [
        Individual(mixed, mixed - 0.02)
    ]


@pytest.fixture
def workers(load) -> Iterator[RayWorkers]:
    found = RayWorkers(3, load)
    yield found
    found.close()


def test_a_dead_worker_loses_nothing(load, workers):
    judge = Judge.of(load)
    expected = [judge.score(member, "train") for member in members()]
    assert list(workers.scores(members(), "train")) == expected
    asked = workers.scores(members(), "train")
    assert next(asked) == expected[0]
    os.kill(ray.get(workers.actors[1].pid.remote()), signal.SIGKILL)
    assert list(asked) == expected[1:]
    os.kill(ray.get(workers.actors[0].pid.remote()), signal.SIGKILL)
    assert list(workers.scores(members(), "train")) == expected
    assert workers.negatives(members()[2], "train") == judge.negatives(members()[2], "train")
    # A worker's own error is the one this process would have had.
    with pytest.raises(KeyError, match="nowhere"):
        list(workers.scores(members()[:1], "nowhere"))


def test_the_command_finds_the_same_with_workers_and_stops_what_it_started(load, tmp_path):
    task = load.path.parent / "task.jsonl"
    options = ["--method", "eep", "--keep", "4", "--task", str(task)]
    options += ["--prune-evaluations", "3", "--evaluations", "5", "--dev-items", "4"]
    written = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert main(["prune", str(load.path), *options, "--workers", workers, "-o", str(out)]) == 0
        written.append((out / "model.safetensors").read_bytes())
        assert not ray.is_initialized()
    assert written[0] == written[1]


def test_a_model_that_does_not_load_is_told_once(load, tmp_path):
    broken = Load(tmp_path, load.compute, load.applied, load.parts)
    with pytest.raises(LeanMoEError, match=r"could not load the model: .*config\.json"):
        RayWorkers(1, broken)
    assert not ray.is_initialized()
