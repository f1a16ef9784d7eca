"""The GPU run rehearsed: the real command on one real pair of engines, with a tiny model."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest

from leanmoe_bench.gpu.command import main
from leanmoe_bench.gpu.models import MODELS

MODEL = "qwen3-30b-a3b"
TINY = MODELS[MODEL].tiny()
WANTED = [f"{kind}:{MODEL}" for kind in ("tokens", "speed", "budget", "profile")]
SIZES = ["--decode", "1,4", "--prefill", "64", "--rounds", "1", "--limit", "1800"]


@pytest.fixture(scope="module")
def done(forked_arms, tmp_path_factory):
    """How the command ended and its file of rows; one pair of engines serves all four parts."""
    path = tmp_path_factory.mktemp("rehearsal") / "rows.jsonl"
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["--rehearse", *WANTED, *SIZES, "--out", str(path)])
    ended = SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
    return ended, path.read_text()


@pytest.fixture(scope="module")
def rows(done):
    return [json.loads(line) for line in done[1].splitlines()]


def of(rows, kind, part=None):
    return [row for row in rows if row["row"] == kind and part in (None, row.get("part"))]


def test_every_part_is_done_and_what_is_printed_is_what_is_written(done, rows):
    ended, written = done
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout == written
    assert [(row["part"], row["status"]) for row in of(rows, "part")] == [
        (part, "done") for part in WANTED
    ]
    assert len(of(rows, "engines")) == 1
    assert all(part in ended.stderr for part in WANTED) and "decode_b4" in ended.stderr


def test_both_engines_drew_the_same_routers_with_realistic_ratios(rows):
    (gates,) = of(rows, "gates")
    assert gates["same_in_both"] and gates["tokens"] == 256 * TINY.shape.layers
    assert 0.5 < gates["median_second_to_first"] < 0.8
    assert 0.4 < gates["thresholds"]["40%"] < 0.65
    (handshake,) = of(rows, "handshake")
    assert handshake["layers"] == TINY.shape.layers


def test_answers_and_counters_hold(rows):
    checks = {row["check"]: row for row in of(rows, "check")}
    assert all(row["passed"] for row in checks.values()) and len(checks) == 4
    assert checks["requests_keep_their_level"]["other_tokens"] > 0
    assert checks["counters_equal_recount"]["tokens"] == 3 * 3 * 256
    assert checks["levels_change_quietly"]["compiled"] == 0


def test_each_measure_and_case_has_its_row_with_what_a_cpu_can_count(rows):
    found = {(row["measure"], row["case"]): row for row in of(rows, "speed", f"speed:{MODEL}")}
    cases = ("level0", "skip40", "top1")
    measures = ("decode_b1", "decode_b4", "prefill_64")
    assert list(found) == [(measure, case) for measure in measures for case in cases]
    for (_, case), row in found.items():
        assert row["low"] <= row["ratio"] <= row["high"] and row["pairs"] == 1
        assert row["ours_of_bandwidth"] > 0 and row["stock_of_bandwidth"] > 0
        assert not {"ours_gpu_busy", "stock_gpu_busy", "target", "met"} & row.keys()
        assert (row["skip_rate"] == 0) == (case == "level0")
    # A step of one token reads as many experts as the token has, prompts included.
    assert found["decode_b1", "level0"]["distinct"] == TINY.shape.top_k
    assert found["decode_b1", "top1"]["distinct"] == 1
    assert 0.25 < found["prefill_64", "skip40"]["skip_rate"] < 0.55


def test_a_budget_is_held_beside_engines_without_one(rows):
    found = {(row["measure"], row["case"]): row for row in of(rows, "speed", f"budget:{MODEL}")}
    assert found["decode_b4", "budget"]["passed"]
    assert found["decode_b4", "budget"]["distinct"] <= TINY.budget
    assert found["prefill_64", "budget_off"]["skip_rate"] == 0
    assert found["prefill_64", "budget"]["skip_rate"] > 0
    assert "passed" not in found["prefill_64", "budget"]


def test_without_a_gpu_there_is_no_profile_and_none_is_made_up(rows):
    (profile,) = of(rows, "profile")
    assert profile["status"] == "not run" and "launches_per_step" not in profile
    assert not of(rows, "launches")
