"""``leanmoe bench offline`` on tiny shapes: the cases run and their rows say what was found."""

from __future__ import annotations

import json

import pytest

from leanmoe.cli import main
from leanmoe.errors import LeanMoEError
from leanmoe_bench.offline.limited import run_limited

BENCH = ["bench", "offline", "--shape", "tiny", "--rounds", "2", "--json"]


def rows(capsys) -> dict:
    return json.loads(capsys.readouterr().out)["offline"]


def test_naee_both_ways_find_the_same_subsets(capsys):
    assert main([*BENCH, "--case", "naee"]) == 0
    row = rows(capsys)["naee"]
    assert row["subsets"] == 28 + 70 and row["pairs"] == 2
    assert {keep: len(dropped) for keep, dropped in row["best_dropped"].items()} == {"6": 2, "4": 4}
    assert 0 < row["low"] <= row["ratio"] <= row["high"]


def test_memory_is_watched(capsys, tmp_path):
    assert main([*BENCH, "--case", "memory", "--work", str(tmp_path)]) == 0
    row = rows(capsys)["memory"]
    assert row["limited_by"] in ("RLIMIT_DATA", "cgroup v2")
    assert 0 < row["peak_anonymous_bytes"] <= row["peak_resident_bytes"] < row["bound_bytes"]


def test_scoring_is_timed_both_ways_on_one_thread_and_two(capsys):
    assert main([*BENCH, "--case", "score"]) == 0
    row = rows(capsys)["score"]
    assert sorted(row["threads"]) == ["1", "2"]
    for found in row["threads"].values():
        for taken in found.values():
            low, high = taken["plain_over_fast"][1:]
            assert 0 < low <= taken["plain_over_fast"][0] <= high


def test_the_limit_holds(tmp_path):
    """Less than torch itself needs."""
    arguments = ["score", str(tmp_path), "--data", "builtin:gen:1", "-o", str(tmp_path / "out")]
    with pytest.raises(LeanMoEError, match="leanmoe score ended with code"):
        run_limited(arguments, 16 << 20, tmp_path / "log")


def test_a_case_that_does_not_exist(capsys):
    assert main([*BENCH, "--case", "speed"]) == 2
    assert "no case 'speed'" in capsys.readouterr().err
