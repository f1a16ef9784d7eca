"""Work that takes long says how far it is, on a terminal or in a log."""

from __future__ import annotations

import io
import re
import sys
import threading

import pytest

from leanmoe_pruning import progress as progress_module
from leanmoe_pruning.progress import progress


class Log(io.StringIO):
    """A stream that is no terminal and tells when a line came."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            self.written.set()
        return count


def test_a_log_is_told_now_and_then(monkeypatch) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress_module, "EVERY", 0.01)
    with progress("scoring layers", 4) as tick:
        assert log.written.wait(60)  # within the first step, however long that takes
        tick()
        while "1 of 4" not in log.getvalue():
            log.written.clear()
            assert log.written.wait(60)
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("scoring layers: 0 of 4 after ")
    assert re.fullmatch(r"scoring layers: 1 of 4 after .*, .* to go", lines[-1])
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_work_that_is_soon_done_says_nothing(monkeypatch) -> None:
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with progress("writing", 2) as tick:
        tick()
    assert log.getvalue() == ""


def test_half_a_minute_lies_between_two_lines(monkeypatch) -> None:
    monkeypatch.undo()  # what spares other tests the lines
    assert progress_module.EVERY == 30


def test_a_log_that_takes_nothing_ends_no_work(monkeypatch) -> None:
    class Full(Log):
        def write(self, text: str) -> int:
            self.written.set()
            raise OSError(28, "No space left on device")

    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    monkeypatch.setattr(progress_module, "EVERY", 0.01)
    with progress("writing", 1):
        assert full.written.wait(60)


def test_a_failure_inside_is_the_one_that_is_told() -> None:
    with pytest.raises(ValueError, match="mine"), progress("writing", 1):
        raise ValueError("mine")
