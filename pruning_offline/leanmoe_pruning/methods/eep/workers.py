"""Individuals evaluated by several processes of this machine, through Ray.

Candidate i of a round belongs to worker i, so who is fast and who is slow changes nothing. A
worker that dies is replaced and its candidate asked again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.extras import install_hint
from leanmoe_pruning.methods.eep.fitness import Judge, Load
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.published_formula import Negatives

_LOG = logging.getLogger(__name__)
# A candidate whose worker dies so often is not the machine's fault.
_MOST_DEATHS = 5
# Matrices and scores are all that travels; Ray would reserve a third of the memory.
_OBJECT_STORE_BYTES = 128 << 20


class RemoteJudge:
    """A ``Judge`` in a worker's process; matrices come as arrays."""

    def __init__(self, threads: int, load: Load) -> None:
        torch.set_num_threads(threads)
        self._judge = Judge.of(load)

    def pid(self) -> int:
        """The worker's process."""
        return os.getpid()

    def score(self, experts: Any, router: Any, part: str) -> float:
        """As ``Judge.score``."""
        return self._judge.score(_received(experts, router), part)

    def negatives(self, experts: Any, router: Any, part: str) -> Negatives:
        """As ``Judge.negatives``."""
        return self._judge.negatives(_received(experts, router), part)


def _received(experts: Any, router: Any) -> Individual:
    # What Ray hands over may not be written to, and torch wants to.
    return Individual(torch.tensor(experts), torch.tensor(router))


class RayWorkers:
    """An ``Evaluator`` of ``count`` processes, each with the whole model in memory."""

    def __init__(self, count: int, load: Load) -> None:
        self._ray, self._load = _ray(), load
        self._threads = max(1, (os.cpu_count() or 1) // count)
        # Ray tells of dead workers on standard output, which belongs to the command's result.
        self._redirected = redirect_stdout(sys.stderr)
        self._redirected.__enter__()
        try:
            self._begin(count)
        except BaseException:
            self.close()
            raise

    def _begin(self, count: int) -> None:
        """Start the workers and wait until each holds the model."""
        self._ray.init(
            address="local",
            num_cpus=count,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
        self.actors = [self._start() for _ in range(count)]
        try:
            self._get([actor.pid.remote() for actor in self.actors])
        except self._ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise LeanMoEError(f"a worker could not load the model: {reason}") from None

    def _start(self) -> Any:
        return self._ray.remote(num_cpus=1)(RemoteJudge).remote(self._threads, self._load)

    def _get(self, answer: Any) -> Any:
        """An answer, or the worker's own error as if it had happened here."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def scores(self, members: Sequence[Individual], part: str) -> Iterator[float]:
        """As ``Evaluator.scores``; ``members`` are at most as many as the workers."""
        asked = [self._ask("score", place, one, part) for place, one in enumerate(members)]
        for place, answer in enumerate(asked):
            yield float(self._answer("score", place, answer, members[place], part))

    def negatives(self, member: Individual, part: str) -> Negatives:
        """As ``Judge.negatives``."""
        asked = self._ask("negatives", 0, member, part)
        found: Negatives = self._answer("negatives", 0, asked, member, part)
        return found

    def _ask(self, method: str, place: int, member: Individual, part: str) -> Any:
        arrays = (member.experts.numpy(), member.router.numpy())
        return getattr(self.actors[place], method).remote(*arrays, part)

    def _answer(self, method: str, place: int, answer: Any, member: Individual, part: str) -> Any:
        for _ in range(_MOST_DEATHS):
            try:
                return self._get(answer)
            except self._ray.exceptions.RayActorError:
                _LOG.warning("a worker died: another takes its place and its candidate")
                self.actors[place] = self._start()
                answer = self._ask(method, place, member, part)
        raise LeanMoEError(
            f"{_MOST_DEATHS} workers died over one candidate, too little memory perhaps: each "
            "holds the whole model; give fewer --workers"
        )

    def close(self) -> None:
        """Stop the workers this object started."""
        self._ray.shutdown()
        self._redirected.__exit__(None, None, None)


def _ray() -> Any:
    # Ray otherwise reports its use over the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            f"--workers takes Ray, which is not installed: run {install_hint('search')}, or "
            "leave --workers out"
        ) from None
    return ray
