"""Ending a group ends the children too, stopped ones included."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from leanmoe.process.group import ProcessGroup

PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
    "print(child.pid, flush=True)\n"
    "sys.stdin.read()\n"
)


def start() -> tuple[ProcessGroup, psutil.Process]:
    read, write = os.pipe()
    with os.fdopen(write, "w") as output, os.fdopen(read) as lines:
        group = ProcessGroup(
            [sys.executable, "-c", PARENT], env=os.environ, output=output, stdin=subprocess.PIPE
        )
        return group, psutil.Process(int(lines.readline()))


def test_a_child_that_does_not_end_is_killed_with_its_parent():
    group, child = start()
    group.process.terminate()
    group.end(grace_seconds=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive and group.process.returncode == -signal.SIGTERM


def test_a_stopped_group_is_ended_too():
    group, child = start()
    group.signal(signal.SIGSTOP)
    group.process.terminate()
    group.end(grace_seconds=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_an_interrupt_while_it_waits_still_ends_all_of_it(monkeypatch):
    group, child = start()
    real, calls = group.process.wait, []

    def interrupted(timeout=None):
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(timeout)

    monkeypatch.setattr(group.process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        group.end(grace_seconds=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_ending_twice_is_no_error():
    group, _ = start()
    group.process.terminate()
    group.end(grace_seconds=10)
    group.end(grace_seconds=10)
