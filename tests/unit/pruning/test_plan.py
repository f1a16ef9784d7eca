"""Plans: what is refused and in which words, and what a planned checkpoint holds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.planned_models import condensed_plan, mixed_plan, write_planned
from tests.reference_model import planned_blocks
from tests.tiny_families import write_tiny

EVERY = list(range(8))
ROWS = [[1.0, 0, 0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0, 0, 0]]


def prune(model, plan, tmp_path, *more: str) -> tuple[int, object]:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    file.write_text(plan if isinstance(plan, str) else json.dumps(plan))
    return main(["prune", str(model), "--plan", str(file), "-o", str(out), *more]), out


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"keep": [0]}, "keeps 1 experts, fewer than the 2 each token is given"),
        ({"keep": []}, "keeps no expert"),
        ({"keep": [1, 1, 2]}, "names an expert twice"),
        ({"keep": [0, 8]}, "names expert 8, and has experts 0 to 7"),
        ({"keep": [-1, 2]}, "names expert -1"),
        ({"keep": [0, 1], "top_k": 3}, "asks for top_k 3, more than the model's 2"),
        ({"keep": [0, 1], "top_k": 0}, "top_k: Input should be greater than 0"),
        ({"keep": ["x"]}, "keep.0: Input should be a valid integer"),
        ({}, "names nothing, expected one of keep, condense, merge"),
        ({"keep": [0, 1], "condense": {"0": 1.0}}, "expected one of keep, condense, merge"),
        ({"condense": {"0": 1.0}, "top_k": 1}, "takes no top_k"),
        ({"condense": {"9": 1.0}}, "names expert 9"),
        ({"condense": {}}, "condenses to no expert, and mixtral has no shared expert"),
        ({"condense": {"0": 1.0}, "shared_gate": 0.5}, "mixtral has no gate on a shared expert"),
        ({"keep": [0, 1], "shared_gate": 0.5}, "shared_gate is for a condensed layer"),
        ({"condense": {"0": 1.0}, "shared_gate": 1.5}, "less than or equal to 1"),
        ({"condense": {"0": "much"}}, "should be a valid number"),
        ({"merge": {"router": ROWS, "experts": ROWS[:1]}}, "matrices with [1, 2] rows"),
        ({"merge": {"router": [[1.0]], "experts": [[1.0]]}}, "and [1] columns"),
        ({"merge": {"router": ROWS[:1], "experts": ROWS[:1]}}, "keeps 1 experts, fewer than"),
        (
            {"merge": {"router": [ROWS[0], [0.0] * 8], "experts": ROWS}},
            "no positive entry in router row 1",
        ),
        ({"keep": EVERY, "because": "it is best"}, "because: Extra inputs are not permitted"),
        ({"keep": [True, False]}, "keep.0: Input should be a valid integer"),
        ({"keep": ["0", 1]}, "keep.0: Input should be a valid integer"),
        ({"condense": {"0": True}}, "Input should be a valid number"),
        ({"condense": {"0": 1e39}}, "less than or equal to 34000000"),
        ({"merge": {"router": [ROWS[0], [1e-50] * 8], "experts": ROWS}}, "router row 1"),
    ],
)
def test_a_layer_that_cannot_be_cut_so(model, tmp_path, capsys, layer, words):
    code, out = prune(model, {"layers": {"1": layer}}, tmp_path)
    said = capsys.readouterr().err
    assert code == 2 and words in said and "plan.json" in said
    assert said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("not json", "cannot be read as a plan"),
        ('{"layers": {"0": {"keep": [' + "1" * 5_000 + "]}}}", "(an integer of 5000 digits is too"),
        ("[]", "the plan: Input should be"),
        ({"layers": {}}, "at least 1 item"),
        ({"schema_version": True, "layers": {"0": {"keep": [0, 1]}}}, "schema_version: Input"),
        ({"layers": {"0": {"keep": [0, True]}}}, "layers.0.keep.1: Input"),
        ({"layers": {"7": {"keep": [0, 1]}}}, "layer 7 is no MoE layer"),
        ({"layers": {"x": {"keep": [0, 1]}}}, "layers.x"),
        ('{"layers": {"0": {"condense": {"0": NaN}}}}', "NaN is no number of JSON"),
        ('{"layers": {"0": {"keep": [0, 1]}, "0": {"keep": [2, 3]}}}', "'0' is there twice"),
        ('{"layers": {"1": {"keep": [0, 1]}, "01": {"keep": [2, 3]}}}', "'01' is there twice or"),
        ('{"layers": {"1.0": {"keep": [0, 1]}}}', "not written plainly"),
    ],
)
def test_a_file_that_is_no_plan(model, tmp_path, capsys, plan, words):
    code, out = prune(model, plan, tmp_path)
    assert code == 2 and words in capsys.readouterr().err and not out.exists()


def test_a_constant_that_overflows_leaves_nothing_behind(model, tmp_path, capsys):
    plan = {"layers": {"1": {"condense": {str(e): 3e38 for e in EVERY}}}}
    code, out = prune(model, plan, tmp_path)
    assert code == 2 and "would hold infinity" in capsys.readouterr().err
    assert not out.exists() and [path.name for path in tmp_path.iterdir()].count("plan.json") == 1


@pytest.mark.parametrize("more", [["--keep", "4"], ["--method", "random"], ["--data", "x"]])
def test_a_plan_and_another_way_of_choosing(model, tmp_path, capsys, more):
    code, _ = prune(model, {"layers": {"0": {"keep": [0, 1]}}}, tmp_path, *more)
    assert code == 2 and f"--plan says what is cut and {more[0]}" in capsys.readouterr().err


def test_neither_plan_nor_method(model, tmp_path, capsys):
    assert main(["prune", str(model), "-o", str(tmp_path / "out")]) == 2
    assert "give --method and what it asks for, or --plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "words"),
    [([0, 1, 2, 4], "breaks the router's 2 groups of 4 experts"), ([0, 1, 2], "breaks")],
)
def test_groups_of_experts_stay_equally_large(tmp_path, capsys, kept, words):
    model = write_tiny(tmp_path / "model", "deepseek_v2")
    code, _ = prune(model, {"layers": {"1": {"keep": kept}}}, tmp_path)
    assert code == 2 and words in capsys.readouterr().err


def test_routers_that_cannot_be_condensed_or_mapped(tmp_path, capsys):
    merge = {"merge": {"router": ROWS, "experts": ROWS}}
    for family, layer, words in (
        ("phimoe", {"condense": {"0": 1.0}}, "gives them no even choice"),
        ("phimoe", {"keep": EVERY, "top_k": 1}, "routes to 2 only"),
        ("deepseek_v3", merge, "no plain softmax"),
    ):
        model = write_tiny(tmp_path / family, family)
        code, _ = prune(model, {"layers": {"1": layer}}, tmp_path)
        assert code == 2 and words in capsys.readouterr().err


def test_equal_counts_need_no_layout_and_load_anywhere(model, tmp_path, capsys):
    plan = {"layers": {str(layer): {"keep": [0, 2, layer + 3]} for layer in range(3)}}
    code, out = prune(model, plan, tmp_path, "--json")
    config = json.loads((out / "config.json").read_text())
    assert code == 0 and "leanmoe" not in config and config["num_local_experts"] == 3
    assert json.loads(capsys.readouterr().out)["loads_in_stock_vllm"] is True
    assert read_manifest(out).kept == {0: [0, 2, 3], 1: [0, 2, 4], 2: [0, 2, 5]}


def test_layers_that_are_not_named_stay_whole(model, tmp_path):
    code, out = prune(model, {"layers": {"1": {"keep": [0, 5, 6]}}}, tmp_path)
    lean = open_model(out)
    assert code == 0
    assert [own.n_experts for own in lean.layers.values()] == [8, 3, 8]
    source, cut = ShardReader(model), ShardReader(out)
    for name in source.names:
        if "layers.1." not in name:
            assert torch.equal(source.read(name), cut.read(name))


def test_a_planned_checkpoint_can_be_cut_again_where_it_routes(model, tmp_path, capsys):
    first = {"layers": {"0": {"keep": EVERY[:5]}, "1": {"condense": {"0": 0.5, "1": 0.5}}}}
    _, out = prune(model, first, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    code, smaller = prune(out, {"layers": {"0": {"keep": [0, 4]}}}, again)
    assert code == 0
    assert [own.n_experts for own in open_model(smaller).layers.values()] == [2, 2, 8]
    told = read_manifest(smaller)
    assert told.kept == {0: [0, 4], 1: [0, 1], 2: EVERY}
    assert told.settings["before"]["settings"]["plan"]["layers"]["1"]["condense"] == {
        "0": 0.5,
        "1": 0.5,
    }
    capsys.readouterr()
    code, _ = prune(out, {"layers": {"1": {"keep": [0, 1]}}}, again, "--force")
    assert code == 2 and "was condensed or merged before" in capsys.readouterr().err
    fresh = again.with_name("fresh")
    assert main(["prune", str(out), "--method", "random", "--keep", "2", "-o", str(fresh)]) == 2
    assert "has layers that differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "plan_of"),
    [
        ("mixtral", mixed_plan),
        ("qwen2_moe", condensed_plan),
        ("deepseek", condensed_plan),
    ],
)
@torch.inference_mode()
def test_the_offline_forward_pass_computes_the_plan(family, plan_of, tmp_path):
    source, out = write_tiny(tmp_path / "source", family, dtype="float32"), tmp_path / "lean"
    plan = write_planned(source, out, plan_of)
    whole, lean = DecoderStream(open_model(source)), DecoderStream(open_model(out))
    ids = [torch.arange(7, 39).view(2, 16)]
    expected, found = embed_all(whole, ids), embed_all(lean, ids)
    blocks = planned_blocks(source, plan)
    for mine, theirs in zip(lean.layers(), whole.layers(), strict=True):
        step_(mine, found)
        if theirs.index not in blocks:
            step_(theirs, expected)
            continue
        theirs.attend_(expected[0])
        expected[0] += blocks[theirs.index](theirs.block_input(expected[0])).view_as(expected[0])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


def test_a_layer_of_its_shared_expert_alone_holds_no_routed_expert(tmp_path, capsys):
    source, out = write_tiny(tmp_path / "source", "qwen2_moe"), tmp_path / "lean"
    plan = write_planned(source, out, condensed_plan)
    bare, rich = plan.layers
    lean, prefix = open_model(out), f"model.layers.{bare}.mlp."
    held = {name for name in ShardReader(out).names if name.startswith(prefix)}
    parts = ["shared_expert_gate.weight", "gate.weight", "gate.layout"]
    parts += [f"shared_expert.{one}_proj.weight" for one in ("gate", "up", "down")]
    assert held == {prefix + part for part in parts}
    assert ShardReader(out).info(f"{prefix}gate.weight").nbytes == 0
    assert (lean.layers[bare].n_experts, lean.layers[bare].condensed) == (0, True)
    assert lean.skip_layers == () and read_manifest(out).kept == {bare: [], rich: [1, 4, 5]}
    again = tmp_path / "again"
    again.mkdir()
    capsys.readouterr()
    code, _ = prune(out, {"layers": {str(bare): {"condense": {}}}}, again)
    assert code == 2 and "was condensed or merged before" in capsys.readouterr().err


def test_transformers_passes_over_the_marker_as_the_page_warns(tmp_path):
    """Once it stops by itself, the page may say so."""
    source = write_tiny(tmp_path / "source", "mixtral")
    code, alike = prune(source, {"layers": {"0": {"keep": EVERY, "top_k": 1}}}, tmp_path)
    assert code == 0
    model, told = AutoModelForCausalLM.from_pretrained(alike, output_loading_info=True)
    assert not told["missing_keys"] and model.model.layers[0].mlp.gate.top_k == 2
    (tmp_path / "more").mkdir()
    code, fewer = prune(source, {"layers": {"0": {"keep": [0, 1, 2]}}}, tmp_path / "more")
    assert code == 0
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(fewer)


def test_a_curve_knows_the_layers_that_route(tmp_path, capsys):
    source, out = write_tiny(tmp_path / "source", "mixtral", dtype="float32"), tmp_path / "lean"
    write_planned(source, out)
    text = tmp_path / "text.txt"
    text.write_text("the water and people of a long day go home see time look write number " * 60)
    data = ["--data", str(text), "--window", "32", "--levels", "3"]
    assert main(["curve", str(out), *data, "--json"]) == 0
    curve = read_manifest(out).curve
    assert curve.layers == list(open_model(out).skip_layers) == [0, 2]
    assert curve.points[0].skip_rate == 0.0
    assert curve.points[-1].skip_rate == pytest.approx(0.5)
    assert all(math.isfinite(point.kld) for point in curve.points)
    assert main(["eval", str(out), *data[:4], "--skip-level", "0.5"]) == 0
    assert main(["score", str(out), *data[:4], "-o", str(tmp_path / "scores")]) == 2
    assert "has layers that differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"9": {"n_experts": 2, "top_k": 2}}, "names layer 9"),
        ({"0": {"n_experts": 9, "top_k": 2}}, "gives layer 0 9 experts"),
        ({"0": {"n_experts": 2, "top_k": 3}}, "top_k is 3, more than its 2 experts"),
        ({"0": {"n_experts": 2}}, "leanmoe.layers.0.top_k: Field required"),
        ({"0": {"n_experts": 3, "top_k": 2, "condensed": True}}, "runs all its experts"),
        ({"0": {"n_experts": 0, "top_k": 0}}, "needs experts and a top_k of at least 1"),
    ],
)
def test_a_layout_that_cannot_be(model, change_config, capsys, tmp_path, layers, words):
    change_config(leanmoe={"layers": layers})
    arguments = ["prune", str(model), "--method", "random", "--keep", "4"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
