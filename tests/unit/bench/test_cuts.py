"""The comparison of cuts: its command lines are ones ``leanmoe`` takes, its tables add up."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import COMMANDS, main
from leanmoe.command import parse
from leanmoe_bench.cuts.command import COMMAND
from leanmoe_bench.cuts.cut_measure import Text, losses, sample_bundle
from leanmoe_bench.cuts.cut_page import mean_of
from leanmoe_bench.cuts.cut_runs import KEEPS, PAIRED, RANDOM, every_run
from leanmoe_bench.cuts.pairs import APART, TOGETHER, kept_by_pairs
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.bundle import ScoreBundle
from tests.golden.naee_data import CALIBRATION, CHECKPOINT

ROOT = Path(__file__).resolve().parents[3]
RUNS = [run for model in KEEPS for run in every_run(model)]
OF_EACH_METHOD = {run.method: run for run in RUNS if run.command}


@pytest.mark.parametrize("run", OF_EACH_METHOD.values(), ids=lambda run: run.method)
def test_every_command_line_is_one_that_leanmoe_takes(run):
    name, *arguments = run.command
    parse(import_module(COMMANDS[name][0]).COMMAND, arguments)
    assert run.command[-1] == "{out}"
    # Merged experts are judged as they are written: no mask over the source gives them.
    assert run.writes == (run.method == "m-smoe") == ("--plan-only" not in run.command)


def test_the_first_cut_is_healed_by_a_command_that_leanmoe_takes():
    healed = [run for run in every_run("mixtral", heal=60) if run.heal]
    assert [(run.method, run.keep) for run in healed] == [("naee, spread", 4), ("naee, spread", 6)]
    name, *arguments = healed[0].healing
    parse(import_module(COMMANDS[name][0]).COMMAND, arguments)
    assert "builtin:math:30" in healed[0].healing[-3]


def test_no_two_runs_of_a_model_share_a_file_and_chance_has_five_seeds():
    for model, keeps in KEEPS.items():
        runs = list(every_run(model, samples=3, heal=10))
        assert len({run.name for run in runs}) == len(runs)
        assert all((run.command == ()) == (run.method in PAIRED) for run in runs)
        assert sum(run.method == RANDOM for run in runs) == 5 * len(keeps)


def test_only_what_decides_by_effects_asks_for_scores_with_them():
    asked = {"{predictions}": set(), "{text}": set(), "{scores}": set()}
    for run in RUNS:
        for one in asked.keys() & set(run.command):
            asked[one].add(run.method)
    assert asked["{predictions}"] == {"naee, spread"}
    assert asked["{text}"] == {"naee, spread, by text"}
    assert {"naee", "reap", "frequency, spread"} < asked["{scores}"]


def row(method: str, first: list[float], seed: int = 0) -> dict:
    kept = [[0, 1], [0, 2]] if method == "naee" else [[0, 1], [2, 3]]
    losses = {"gen": first, "c": [one + 1 for one in first]}
    return {"method": method, "keep": 2, "seed": seed, "kept": kept, "losses": losses}


ROWS = [
    {"method": "full model", "losses": row("", [1.0, 1.2])["losses"]},
    row("naee", [1.1, 1.3]),
    row(RANDOM, [1.2, 1.4]),
    row(RANDOM, [1.22, 1.5], seed=1),
]


def test_chance_is_the_mean_of_its_seeds_window_by_window():
    assert mean_of(ROWS[2:])["gen"] == pytest.approx([1.21, 1.45])


def test_the_table_holds_every_method_against_chance():
    lines = COMMAND.show({"rows": ROWS}).splitlines()
    assert lines[0] == "Keep 2:" and len([one for one in lines if one.startswith("| ")]) == 4
    naee, chance = lines[4:6]
    assert naee.startswith("| naee | +10.5% (+10.5% to +10.5%) |") and naee.endswith("| 0 to 2 |")
    # Against chance 0.11 and 0.15 less in both domains.
    assert f"| {math.expm1(-0.13):+.1%} (" in naee
    assert chance.startswith("| random, mean of 2 seeds | +25.9% (") and "|  |" in chance


def test_of_merged_experts_no_layers_are_counted():
    merged = row("m-smoe", [1.1, 1.3]) | {"kept": []}
    line = COMMAND.show({"rows": [*ROWS, merged]}).splitlines()[5]
    assert line.startswith("| m-smoe | +10.5%") and line.endswith("|  |")


def test_pairs_lose_one_expert_or_both():
    layers = range(40)
    for method, left in ((APART, {1, 2}), (TOGETHER, {0, 2})):
        kept = kept_by_pairs(layers, 12, method, 0)
        pairs = [
            [own.count(2 * g) + own.count(2 * g + 1) for g in range(8)] for own in kept.values()
        ]
        assert list(kept) == list(layers) and all(sum(one) == 12 for one in pairs)
        assert {count for one in pairs for count in one} == left
        assert kept != kept_by_pairs(layers, 12, method, 1)


def test_what_samples_of_the_text_decide_is_shown_one_by_one_and_in_the_mean():
    samples = [row("naee", [1.1, 1.3]) | {"sample": 1}, row("naee", [1.12, 1.3]) | {"sample": 2}]
    lines = COMMAND.show({"rows": [*ROWS, *samples]}).splitlines()
    means = f"{math.expm1(0.1):+.1%}, {math.expm1(0.11):+.1%}"
    assert lines[-1].startswith(f"| naee, mean of 2 samples: {means} | {math.expm1(0.105):+.1%} (")
    assert lines[4].startswith("| naee | ") and lines[4].endswith("| 0 to 2 |")


@pytest.mark.parametrize("effects", [("--effects",), ()])
def test_a_sample_is_the_bundle_of_every_third_window(effects, tmp_path):
    """Cut out of the whole one, it is what scoring these windows gives."""
    ids_NT = load_file(CALIBRATION.split(":")[0])["calib_input_ids"]
    rule = RouterRule.of(open_model(CHECKPOINT).shape)

    def scored(name: str, rows: torch.Tensor) -> Path:
        save_file({"input_ids": rows.contiguous()}, tmp_path / f"{name}.safetensors")
        data = str(tmp_path / f"{name}.safetensors")
        score = ["score", str(CHECKPOINT), *effects, "--data", data]
        assert main([*score, "-o", str(tmp_path / name)]) == 0
        return tmp_path / name

    whole = scored("whole", ids_NT)
    for sample in (1, 2, 3):
        text = Text(windows=6, held_out=1, samples=3)
        part = tmp_path / f"part-{sample}"
        sample_bundle(whole, part, rule, text, sample)
        expected = ScoreBundle(scored(f"alone-{sample}", ids_NT[sample - 1 :: 3]))
        assert ScoreBundle(part).description.layout == expected.description.layout
        for mine, own in zip(ScoreBundle(part).layers(rule), expected.layers(rule), strict=True):
            torch.testing.assert_close(mine.router_logits_TE, own.router_logits_TE)
            torch.testing.assert_close(mine.output_gram_TP, own.output_gram_TP)
            assert getattr(mine.effects_SE, "shape", None) == getattr(own.effects_SE, "shape", None)


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    for options, said in (
        (["--case", "eep"], "no method 'eep' is compared"),
        (["--windows", "65"], "--windows is 65, expected 1 to the 64 that ship"),
        (["--held-out", "15"], "--held-out is 15, expected 1 to the 14 that ship"),
        (["--heal", "129"], "--heal is 129, expected 0 to 128 steps"),
        (["--samples", "65"], "--samples is 65, expected 0 to --windows (64)"),
        (["--keep", "5"], "--keep is 5, compared are 4 and 6 of mixtral"),
        (["--done", "--work", str(tmp_path)], "nothing was measured"),
    ):
        assert main(["bench", "cuts", *options]) == 2
        assert said in capsys.readouterr().err


def test_done_shows_the_rows_there_are_and_runs_nothing(tmp_path, capsys):
    (tmp_path / "full-on-14.json").write_text(json.dumps(ROWS[0]))
    (tmp_path / "naee-keep-4-seed-0-on-14.json").write_text(json.dumps(ROWS[1]))
    assert main(["bench", "cuts", "--done", "--work", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ROWS[:2]


def test_masked_experts_cost_what_the_cut_checkpoint_costs(tmp_path):
    """Held-out token ids of the tiny golden model instead of text."""
    from leanmoe_pruning.checkpoints.opening import open_model
    from tests.golden.naee_data import CALIBRATION, CHECKPOINT

    arguments = ["--method", "random", "--keep", "4", "-o", str(tmp_path / "out")]
    assert main(["prune", str(CHECKPOINT), *arguments]) == 0
    cut = losses(tmp_path / "out", {}, CALIBRATION)
    manifest = json.loads((tmp_path / "out" / "leanmoe.json").read_text())
    kept = {int(layer): own for layer, own in manifest["kept"].items()}
    assert set(kept) == set(open_model(CHECKPOINT).shape.moe_layers)
    masked = losses(CHECKPOINT, kept, CALIBRATION)
    for name, windows in cut.items():
        assert masked[name] == pytest.approx(windows, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["cuts.json", "cuts-keep-4.json", "cuts-qwen2-moe.json", "cuts-mixtral-3.json"]
)
def test_the_page_holds_the_tables_of_the_recorded_rows(name):
    recorded_rows = json.loads((ROOT / "benchmarks/results" / name).read_text())
    assert COMMAND.show(recorded_rows).strip() in (ROOT / "docs/results.md").read_text()
