"""Merging models whose weights were zeroed: what cannot be is said before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanmoe_pruning.commands import prune
from tests.tiny_families import write_tiny
from tests.tiny_tasks import write_choices
from tests.unit.pruning.test_packed_models import pruned, run

N_EXPERTS = 8
SMALL = ("--prune-evaluations", "3", "--evaluations", "5", "--groups", "1")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "model", "mixtral")


def plan_of(path: Path, *, adding: bool) -> Path:
    rows = [[float(row == column) for column in range(N_EXPERTS)] for row in range(6)]
    if adding:
        rows[0][7] = 0.5
    merge = {"merge": {"router": rows, "experts": rows}}
    path.write_text(json.dumps({"layers": {"0": merge}}))
    return path


def asked(method: str, folder: Path) -> tuple[object, ...]:
    task = folder / "task.jsonl"
    write_choices(task)
    return {
        "m-smoe": ("--method", "m-smoe", "--keep", "6", "--data", "builtin:gen:2"),
        "eep": ("--method", "eep", "--keep", "6", "--task", task, *SMALL),
        "plan": ("--plan", plan_of(folder / "plan.json", adding=True)),
    }[method]


def let_nothing_begin(monkeypatch) -> None:
    """Deciding begins with this; what is refused before it has cost nothing."""

    def begun() -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(prune, "stop_on_signals", begun)


@pytest.mark.parametrize("method", ["m-smoe", "eep", "plan"])
@pytest.mark.parametrize("more", [(), ("--compress",)], ids=["dense", "packed"])
def test_sums_are_not_packed_by_a_pattern(method, more, source, tmp_path, capsys, monkeypatch):
    """Each expert keeps weights of its own, so that a sum keeps more."""
    sparse = tmp_path / "sparse"
    pruned(source, sparse, "--pattern", "16:32", "--no-permute", *more)
    let_nothing_begin(monkeypatch)
    out = tmp_path / "out"
    assert run("prune", sparse, *asked(method, tmp_path), "--compress", "-o", out) == 2
    said = capsys.readouterr().err
    assert "--compress packs 16:32, and sums of experts of" in said
    assert not out.exists()


def test_sums_of_any_mask_are_packed_with_what_they_have_more(source, tmp_path):
    sparse = pruned(source, tmp_path / "sparse", "--sparsity", "0.5")
    assert run("prune", sparse, *asked("plan", tmp_path), "--compress", "-o", tmp_path / "out") == 0


def test_merging_that_adds_nothing_up_is_packed_by_the_pattern(source, tmp_path):
    sparse = pruned(source, tmp_path / "sparse", "--pattern", "16:32", "--no-permute")
    plan = plan_of(tmp_path / "plan.json", adding=False)
    assert run("prune", sparse, "--plan", plan, "--compress", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("method", ["m-smoe", "eep"])
def test_experts_in_orders_of_their_own_are_not_merged(
    method, source, tmp_path, capsys, monkeypatch
):
    permuted = pruned(source, tmp_path / "permuted", "--pattern", "16:32")
    let_nothing_begin(monkeypatch)
    assert run("prune", permuted, *asked(method, tmp_path), "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "cannot be added up: a pattern gave each one's hidden channels an order" in said
