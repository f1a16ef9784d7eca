"""Silent workers: late and busy is well for a while, stopped or idle is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from leanmoe.process.processor_time import ProcessorSeconds
from leanmoe_server.process_tree import ProcessTree
from leanmoe_server.pulse import (
    BUSY_SECONDS,
    PATIENCE_SECONDS,
    STARVED_SECONDS,
    Pulse,
    Work,
    work_of,
)


class Scene:
    """A clock and processes that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.work = Work({7: ProcessorSeconds(3.0, 1.0)})
        self.pulse = Pulse(5.0, clock=lambda: self.now, work=lambda: self.work)

    def pass_by(self, seconds: float, busy: float = 0.0, waiting: float = 0.0) -> None:
        self.now += seconds
        self.work = Work({7: self.work.seconds[7] + ProcessorSeconds(busy, waiting)})


def test_nothing_is_wrong_before_the_first_answer_and_soon_after_one() -> None:
    scene = Scene()
    scene.pass_by(1000)
    assert scene.pulse.problem is None
    scene.pulse.beat()
    scene.pass_by(5 + PATIENCE_SECONDS)
    assert scene.pulse.problem is None


def test_idle_workers_that_do_not_answer_hang_within_ten_seconds() -> None:
    scene = Scene()
    scene.pulse.beat()
    scene.pass_by(9)
    assert scene.pulse.problem == "the workers have not answered for 9 s: they hang"
    scene.pulse.beat()
    assert scene.pulse.problem is None


def test_a_long_step_is_no_hang_but_an_endless_one_is() -> None:
    scene = Scene()
    scene.pulse.beat()
    scene.pass_by(30, busy=29)
    assert scene.pulse.problem is None
    scene.pass_by(BUSY_SECONDS - 29, busy=BUSY_SECONDS)
    assert scene.pulse.problem is not None


def test_who_gets_no_processor_is_late_for_longer_but_not_for_ever() -> None:
    scene = Scene()
    scene.pulse.beat()
    scene.pass_by(STARVED_SECONDS, busy=STARVED_SECONDS / 4, waiting=STARVED_SECONDS / 2)
    assert scene.pulse.problem is None
    scene.pass_by(1)
    assert scene.pulse.problem == "the workers have not answered for 601 s: they hang"


def test_a_child_that_computes_wants_a_processor_and_one_that_sleeps_does_not() -> None:
    with child("while True: pass") as busy, child("import time; time.sleep(600)") as idle:
        wanted = {one.pid: 0.0 for one in (busy, idle)}
        while wanted[busy.pid] < 1.0:
            wanted = {pid: work_of(ProcessTree().others()).seconds[pid].wanted for pid in wanted}
        assert wanted[idle.pid] < wanted[busy.pid] / 2
        idle.send_signal(signal.SIGSTOP)
        while not work_of(ProcessTree().others()).stopped:
            pass
        assert work_of(ProcessTree().others()).stopped == (idle.pid,)


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", code]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("work", [Work({7: ProcessorSeconds(12.0)}, stopped=(7,)), Work({})])
def test_a_stopped_or_ended_process_is_not_busy(work: Work) -> None:
    scene = Scene()
    scene.pulse.beat()
    scene.pass_by(9)
    scene.work = work
    problem = scene.pulse.problem
    assert problem is not None
    assert ("process 7 is stopped" in problem) is bool(work.stopped)
