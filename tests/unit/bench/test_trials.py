"""Checks in a process of their own: what one that fails leaves of the others."""

import signal
import subprocess

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu import kernels, trials
from leanmoe_bench.gpu.deadline import OutOfTime
from leanmoe_bench.printed import printed

# Stands in for a module of cases: what it prints and how it ends, by the case it begins with.
PROCESS = """
import os, signal, sys
sys.path.insert(0, {here!r})
from leanmoe_bench.gpu import trials

def fail(): raise RuntimeError("no kernel image")
def end(): os.kill(os.getpid(), signal.SIGKILL)
def wait():
    signal.alarm(20)  # ends it where nobody else does
    signal.pause()

print("a library's own words")
trials.run([("good", lambda: True), {cases}, ("last", lambda: True)], int(sys.argv[1]))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of cases between a good one and a last one."""

    def made(cases):
        (tmp_path / "some_cases.py").write_text(PROCESS.format(here=str(tmp_path), cases=cases))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        return "some_cases"

    return made


def collected(module):
    found = trials.Trials()
    found.collect(module)
    return found.told()


def test_all_that_pass_pass(module):
    assert collected(module('("other", lambda: True)')) == {
        "status": "ran",
        "passed": True,
        "cases": 3,
        "failed": [],
        "errors": {},
        "not_tried": [],
    }


def test_one_that_raises_is_told_and_the_others_are_tried(module):
    cases = '("false", lambda: False), ("raises", fail), ("too", fail)'
    found = collected(module(cases))
    assert not found["passed"] and found["failed"] == ["false", "raises", "too"]
    assert found["errors"] == {"raises": "RuntimeError: no kernel image"}  # said once
    assert found["cases"] == 5 and found["not_tried"] == []


def test_one_that_ends_the_process_fails_and_the_next_ones_run_in_a_new_one(module):
    found = collected(module('("ends", end)'))
    assert found["failed"] == ["ends"] and found["not_tried"] == []
    assert f"ended with code {-signal.SIGKILL}" in found["errors"]["ends"]


def test_a_broken_device_ends_the_process_after_the_case_that_broke_it(monkeypatch, capsys):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trials.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trials.torch.cuda, "synchronize", broken)
    trials.run([("breaks", broken), ("next", lambda: True)], 0)
    names, row = capsys.readouterr().out.splitlines()
    assert '"next"' in names and "illegal memory access" in row


def test_processes_that_end_at_every_case_are_given_up(module, monkeypatch):
    monkeypatch.setattr(trials, "_MOST_STARTS", 2)
    found = collected(module('("a", end), ("b", end), ("c", end)'))
    assert found["failed"] == ["a", "b"] and found["not_tried"] == ["c", "last"]
    assert not found["passed"]


def test_a_run_that_is_cut_off_says_what_it_had_tried(module, monkeypatch):
    rows = [{"names": ["a", "b", "c"]}, {"case": "a", "passed": True}]

    def cut_off(*arguments, **named):
        yield from rows
        raise OutOfTime

    monkeypatch.setattr(trials, "printed", cut_off)
    checking = kernels.check("cuda")
    found = next(checking)
    assert found["not_tried"] == ["b", "c"] and not found["passed"] and found["cases"] == 3
    with pytest.raises(OutOfTime):
        next(checking)


def test_a_process_ends_with_whoever_takes_its_rows(module, monkeypatch):
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **named: started.append(start(*a, **named)) or started[-1]
    )
    rows = printed(module('("waits", wait)'), "0", what="it")
    assert "names" in next(rows) and next(rows)["case"] == "good"
    rows.close()
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_the_end_of_what_a_process_said_is_in_the_error(module):
    with pytest.raises(LeanMoEError, match=r"it ended with code 1\n(.*\n)*.*No module named"):
        list(printed("no_such_module_at_all", what="it"))
