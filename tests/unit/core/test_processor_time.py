"""What processes ran and waited for, and the clock of one that watches others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from leanmoe.process import processor_time
from leanmoe.process.processor_time import attentive_clock, processor_seconds, session_seconds

SPIN = "while True: pass"


@contextmanager
def child(code: str, processor: int) -> Iterator[subprocess.Popen[bytes]]:
    pin = f"import os; os.sched_setaffinity(0, [{processor}])\n"
    command = [sys.executable, "-S", "-c", pin + code]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


def test_two_that_share_a_processor_wait_for_each_other_and_a_sleeper_for_nobody() -> None:
    processor = min(os.sched_getaffinity(0))
    with (
        child(SPIN, processor) as one,
        child(SPIN, processor) as other,
        child("import time; time.sleep(600)", processor) as idle,
    ):
        while min(of(one).waited, of(other).waited) < 0.5:
            assert one.poll() is None and other.poll() is None
        assert min(of(one).ran, of(other).ran) > 0.1
        assert of(idle).ran < of(one).ran
        assert session_seconds(one.pid).waited >= 0.5
    assert processor_seconds(one.pid) is None


def of(process: subprocess.Popen[bytes]) -> processor_time.ProcessorSeconds:
    found = processor_seconds(process.pid)
    assert found is not None
    return found


def test_the_clock_of_a_watcher_stands_still_while_it_waits_for_a_processor() -> None:
    """A child is the watcher, so that this process keeps its processors."""
    processor = min(os.sched_getaffinity(0))
    watcher = """
import time
from leanmoe.process.processor_time import attentive_clock
wall, own = time.monotonic(), attentive_clock()
while time.monotonic() - wall - (attentive_clock() - own) < 0.5:
    pass
"""
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(child(SPIN, processor))
        pinned = f"import os; os.sched_setaffinity(0, [{processor}])\n" + watcher
        subprocess.run([sys.executable, "-c", pinned], check=True, timeout=600)


def test_where_the_kernel_keeps_no_schedstat_ticks_say_what_ran(tmp_path, monkeypatch) -> None:
    stat = "7 (a) b) S 1 7 5 0 -1 4194560 9 9 9 9 300 50 40 10 20 0 1 0 99 0 0"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    monkeypatch.setattr(processor_time, "_PROCESSES", tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    found = processor_seconds(7)
    assert found is not None
    assert (found.ran, found.waited) == (350 / ticks, 0.0)
    assert session_seconds(5).ran == 400 / ticks
    before, now = time.monotonic(), attentive_clock()
    assert now >= before
