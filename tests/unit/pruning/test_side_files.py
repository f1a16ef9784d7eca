"""What goes along with the weights: tokenizer folders, and settings that name experts by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe.errors import CheckpointError
from leanmoe.manifest import check_files, read_manifest
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge
from leanmoe_pruning.cutting.module_names import ModuleNames
from tests.family_references import change_config
from tests.tiny_families import write_tiny


def prune(source: Path, out: Path, plan: dict[int, list[int]], *more: str) -> int:
    file = out.with_suffix(".json")
    layers = {str(layer): {"keep": kept} for layer, kept in plan.items()}
    file.write_text(json.dumps({"layers": layers}))
    return main(["prune", str(source), "--plan", str(file), "-o", str(out), *more])


@pytest.fixture
def source(tmp_path):
    return write_tiny(tmp_path / "source", "qwen3_moe")


EVEN = {0: [1, 3, 5, 7], 1: [0, 1, 2, 3], 2: [4, 5, 6, 7]}


def test_folders_of_the_tokenizer_go_along_and_others_are_named(source, tmp_path, caplog) -> None:
    for name in ("additional_chat_templates/tools.jinja", "onnx/model.onnx", "assets/logo.png"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    (source / "consolidated.pth").write_text("x")
    (source / ".cache").mkdir()
    out = tmp_path / "out"
    assert prune(source, out, EVEN) == 0
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "x"
    assert "not copied: assets/, consolidated.pth, onnx/" in caplog.text
    assert not (out / "onnx").exists()
    manifest = read_manifest(out)
    assert "additional_chat_templates/tools.jinja" in manifest.files
    assert prune(source, out, EVEN, "--force") == 0  # the output is one of ours, folder and all
    (out / "additional_chat_templates" / "tools.jinja").write_text("y")
    with pytest.raises(CheckpointError, match="does not match the manifest"):
        check_files(out, manifest)


@pytest.mark.parametrize("name", ["../config.json", "other/x", "tokenizer/deep/x", "/etc/passwd"])
def test_a_manifest_names_nothing_outside(source, name) -> None:
    from leanmoe.manifest import Manifest

    manifest = Manifest(family="qwen3_moe", method="none", files={name: "sha256:0"})
    with pytest.raises(
        CheckpointError, match=f"names the file '{name}', expected one beside it or"
    ):
        check_files(source, manifest)


def expert(layer: int, number: int, rest: str = "") -> str:
    return f"model.layers.{layer}.mlp.experts.{number}{rest}"


NAMED = ["lm_head", expert(0, 3), expert(0, 2), expert(0, 7, ".gate_proj"), "model.layers.0.mlp"]
RENAMED = ["lm_head", expert(0, 1), expert(0, 3, ".gate_proj"), "model.layers.0.mlp"]


@pytest.mark.parametrize(
    "settings_of",
    [
        lambda names: {"quant_method": "awq", "modules_to_not_convert": names},
        lambda names: {"quant_method": "compressed-tensors", "ignore": names},
        lambda names: {"quant_method": "modelopt", "exclude_modules": names},
        lambda names: {"ignored_layers": names},
        lambda names: {"config_groups": {"group_0": {"targets": names}}},
        lambda names: {"quantized_layers": {one: {"quant_algo": "FP8"} for one in names}},
    ],
)
def test_every_list_of_modules_follows_the_experts(source, tmp_path, settings_of) -> None:
    change_config(source, quantization_config=settings_of(NAMED))
    assert prune(source, tmp_path / "out", EVEN) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization_config"] == settings_of(RENAMED)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_so_does_a_tool_s_own_file(source, tmp_path, name) -> None:
    (source / name).write_text(json.dumps({"quantization": {"exclude_modules": NAMED}}))
    assert prune(source, tmp_path / "out", EVEN) == 0
    written = json.loads((tmp_path / "out" / name).read_text())
    assert written == {"quantization": {"exclude_modules": RENAMED}}
    check_files(tmp_path / "out", read_manifest(tmp_path / "out"))


@pytest.mark.parametrize(
    "name",
    [r"re:.*experts\.5\..*", "experts.5", "model.layers.0.mlp.experts.5*", r"re:.*experts\.(1|2)"],
)
def test_numbers_that_cannot_be_followed_are_refused(source, tmp_path, capsys, name) -> None:
    change_config(source, quantization_config={"ignored_layers": [name]})
    assert prune(source, tmp_path / "out", EVEN) == 2
    said = capsys.readouterr().err
    assert "names experts by number" in said and repr(name) in said
    first = {layer: [0, 1, 2, 3] for layer in EVEN}
    assert prune(source, tmp_path / "first", first) == 0  # every expert keeps its number


@pytest.mark.parametrize("name", [r"re:.*experts\.\d+\..*", r"re:.*experts\.[0-9]+", "lm_head", ""])
def test_what_names_no_single_expert_stays(name) -> None:
    names = ModuleNames({0: LayerPlan(keep=(1, 3))}, Path("model"))
    assert names.renumbered({"ignore": [name]}) == {"ignore": [name]}


def test_an_expert_of_a_merged_layer_has_no_new_number() -> None:
    merge = Merge(router=[[1.0, 1.0]], experts=[[0.5, 0.5]])
    names = ModuleNames({0: LayerPlan(merge=merge)}, Path("model"))
    assert names.renumbered([expert(1, 3)]) == [expert(1, 3)]
    with pytest.raises(CheckpointError, match="names experts by number"):
        names.renumbered([expert(0, 1)])
