"""The comparison of patterns: its command lines are ones ``leanmoe`` takes, its table adds up."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import pytest

from leanmoe.cli import COMMANDS, main
from leanmoe.command import parse
from leanmoe_bench.patterns.command import COMMAND
from leanmoe_bench.patterns.pattern_page import gap, over_unstructured
from leanmoe_bench.patterns.pattern_runs import calibration, every_run

ROOT = Path(__file__).resolve().parents[3]
RUNS = list(every_run(calibration(8), 30))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_command_line_is_one_that_leanmoe_takes(run):
    for name, *arguments in run.commands:
        parse(import_module(COMMANDS[name][0]).COMMAND, arguments)
    assert run.commands[-1][-1] == "{out}"


def test_no_two_runs_share_a_file_and_each_has_its_unstructured():
    assert len({run.name for run in RUNS}) == len(RUNS)
    kinds = [(run.method, run.kept, run.trained) for run in RUNS]
    plain = {kind for kind, run in zip(kinds, RUNS, strict=True) if run.pattern == "unstructured"}
    assert set(kinds) == plain


def row(pattern: str, losses: list[float], **own) -> dict:
    told = {"pattern": pattern, "kept": 50, "permuted": False, "trained": False, "seconds": 2.0}
    return {**told, **own, "losses": {"gen": losses, "c": [one + 1 for one in losses]}}


ROWS = [
    row("full model", [1.0, 1.2]),
    row("unstructured", [1.5, 1.7]),
    row("16:32", [1.54, 1.76], permuted=True),
    row("8:32", [2.0, 2.0], kept=25),
]


def test_domains_weigh_equally_and_windows_are_paired():
    mean, half = gap(ROWS[2]["losses"], ROWS[1]["losses"])
    assert mean == pytest.approx(0.05)
    # Two windows, 0.04 and 0.06: Student's t of one degree times 0.01, over two domains.
    assert half == pytest.approx(12.706 * 0.01 / math.sqrt(2), rel=1e-3)


def test_a_pattern_is_held_against_the_same_share_without_groups():
    ratio, half = over_unstructured(ROWS[2], ROWS)
    assert ratio == pytest.approx(1.1) and half == pytest.approx(0.1797, rel=1e-3)
    assert over_unstructured(ROWS[3], ROWS) is None


def test_a_method_is_held_against_itself():
    other = row("unstructured", [1.2, 1.4], method="sparsegpt")
    mine = row("16:32", [1.24, 1.42], method="sparsegpt")
    assert over_unstructured(mine, ROWS) is None
    assert over_unstructured(mine, [*ROWS, other, mine])[0] == pytest.approx(1.15)
    assert "| 16:32, sparsegpt |" in COMMAND.show({"rows": [ROWS[0], other, mine]})


def test_the_table_has_a_line_per_row():
    lines = COMMAND.show({"rows": ROWS}).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| 50 % | unstructured | +64.9% (")
    assert "| 16:32, permuted |" in lines[3] and "| 1.100 (0.920 to 1.280) | 2 |" in lines[3]
    assert "| not measured |" in lines[4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "3:5"], "no pattern '3:5'"),
        (["--case", "2:4", "--method", "sparsegpt"], "no pattern '2:4' is compared by sparsegpt"),
        (["--windows", "65"], "--windows is 65, expected 1 to the 64 that ship"),
        (["--training-windows", "0"], "--training-windows is 0, expected 1 to the 64"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, said, capsys):
    assert main(["bench", "patterns", *options]) == 2
    assert said in capsys.readouterr().err


def test_done_shows_the_rows_there_are_and_runs_nothing(tmp_path, capsys):
    options = ["bench", "patterns", "--done", "--work", str(tmp_path), "--json"]
    assert main(options) == 2
    assert "nothing was measured" in capsys.readouterr().err
    for name, one in (("full", ROWS[0]), ("unstructured-kept-50", ROWS[1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    assert main(options) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ROWS[:2]


@pytest.mark.parametrize("name", ["patterns-all-text", "patterns-sparsegpt"])
def test_the_page_holds_the_tables_of_the_recorded_rows(name):
    recorded = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert COMMAND.show(recorded) in (ROOT / "docs/results.md").read_text()
