"""The comparison of methods: its command lines are ones ``leanmoe`` takes, its page adds up."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from leanmoe.cli import COMMANDS, main
from leanmoe.command import parse
from leanmoe_bench.methods.command import CALIBRATION, COMMAND, JUDGING, selected
from leanmoe_bench.methods.runs import every_run

ROOT = Path(__file__).resolve().parents[3]
RUNS = list(every_run(CALIBRATION))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_command_line_is_one_that_leanmoe_takes(run):
    for name, *arguments in [*run.commands, ("eval", "{out}", *JUDGING.options)]:
        command = import_module(COMMANDS[name][0]).COMMAND
        parse(command, arguments)
    assert run.commands[-1][-1] == "{out}"


def test_no_two_runs_share_a_file():
    assert len({run.name for run in RUNS}) == len(RUNS)


def show(rows: list[dict]) -> str:
    return COMMAND.show({"methods": rows})


def row(method: str, budget: str, ratio: float) -> dict:
    interval = {"mean": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
    domain = {"perplexity": 8.0, "low": 7.0, "high": 9.0, "tokens": 100}
    domain |= {"against": {"ratio": interval}, "kld": 0.25, "top1_agreement": 0.5}
    task = {"items": 100, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    task |= {"against": {"accuracy": 0.5, "low": -0.1, "high": 0.05}}
    found = {"domains": {"gen": domain, "c": domain}, "tasks": {"arith": task}}
    told = {"method": method, "budget": budget, "calibration": "mix", "seed": 1}
    return {**told, "seconds": 3.2, "cpu_seconds": 5.1, "eval": found}


def test_the_page_has_a_table_per_budget_and_the_geometric_mean():
    said = show([row("full model", "8 of 8", 1), row("naee", "keep 4", 1.1), row("x", "2:4", 1.2)])
    assert said.count("\n## ") == 2 and "## Keep 4" in said and "## 2:4" in said
    [line] = [line for line in said.splitlines() if line.startswith("| naee")]
    assert "+10.0% (+9.0% to +11.0%)" in line and "**+10.0% (+9.3% to +10.7%)**" in line
    assert "| 0.250 | 50% | 50% (-10% to +5%) | 3, 5 |" in line
    heads = [line for line in said.splitlines() if line.startswith("| method")]
    assert {head.count("|") for head in heads} == {line.count("|")}


def test_a_method_nobody_has_is_refused(capsys):
    assert len(selected(["naee"])) == 6
    assert main(["bench", "methods", "--case", "no", "--json"]) == 2
    assert "no method 'no' is compared" in capsys.readouterr().err


def test_findings_say_what_holds_and_what_lies_within_the_intervals():
    made = [
        row("full model", "8 of 8", 1),
        row("naee", "keep 4", 1.1),
        {**row("reap", "keep 4", 1.2), "calibration": "mix"},
        {**row("random", "keep 4", 1.3), "seed": 0},
        {**row("random", "keep 4", 1.5), "seed": 1},
        {**row("naee", "keep 4", 1.05), "calibration": "domain"},
        {**row("eep", "keep 4", 1.4), "calibration": "arith"},
        row("moe-pruner", "50 %", 1.21),
        row("wanda", "50 %", 1.212),
        row("moe-pruner, distilled", "50 %", 1.09),
    ]
    lines = [line for line in show(made).splitlines() if line.startswith("- ")]
    least, domain, task, pair, regained = lines[-5:]
    assert "keep 4: holds. NAEE +10.0% (+9.3% to +10.7%); reap +20.0%, random +39.6%" in least
    assert "keep 4: holds. On `c`" in domain
    assert "does not hold, not told apart here. `arith`" in task
    assert "ahead, not told apart here. +21.0%" in pair
    assert "50 % lost: holds. +21.0%" in regained and "55% of the log loss" in regained


def test_rows_that_are_done_are_shown_without_running_any(tmp_path, capsys):
    assert main(["bench", "methods", "--done", "--work", str(tmp_path), "--json"]) == 2
    assert "nothing was measured in" in capsys.readouterr().err
    made = {"full": row("full model", "8 of 8", 1), RUNS[0].name: row("naee", "keep 4", 1.1)}
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert main(["bench", "methods", "--done", "--work", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"] == list(made.values())


def test_the_page_of_results_shows_the_recorded_rows():
    recorded = json.loads((ROOT / "benchmarks/results/methods.json").read_text())["methods"]
    assert (ROOT / "docs/results.md").read_text().startswith(show(recorded))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.name
)
def test_recorded_results_name_no_place_of_the_machine_that_made_them(path):
    assert not re.findall(r'"(?:/|~|[A-Z]:)[^"]*"', path.read_text())
