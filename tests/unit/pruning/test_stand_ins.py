"""``--replace``: what a checkpoint with stand-ins holds and computes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.manifest import MANIFEST_NAME, read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.reference_model import stand_in_blocks
from tests.tiny_families import write_tiny

DATA = ("--data", "builtin:gen:2", "--window", "64")
IDS = torch.tensor([[7 + (13 * i) % 400 for i in range(40)]])
KEEP = {"mixtral": "4", "deepseek_v3": "6"}


def prune(source: Path, out: Path, *more: str) -> int:
    keep = KEEP[open_checkpoint(source).family.name]
    given = ("--method", "random", "--keep", keep, *more)
    return main(["prune", str(source), *given, "-o", str(out)])


@pytest.fixture(scope="module", params=[*KEEP])
def source(request, tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "m", request.param, dtype="float32")


@pytest.fixture(scope="module", params=["constant", "lowrank:4"])
def lean(request, source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lean") / "lean"
    assert prune(source, out, "--replace", request.param, *DATA) == 0
    return out


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "m", "mixtral", dtype="float32")


@pytest.fixture(scope="module")
def constants(mixtral, tmp_path_factory) -> Path:
    """Mixtral's, with constants."""
    out = tmp_path_factory.mktemp("lean") / "lean"
    assert prune(mixtral, out, "--replace", "constant", *DATA) == 0
    return out


def test_kept_experts_and_routers_are_the_sources_under_their_old_names(source, lean):
    before, after = (load_file(path / "model.safetensors") for path in (source, lean))
    model = open_checkpoint(lean)
    kept = read_manifest(lean).kept
    gone = {
        (layer, expert) for layer, own in model.layers.items() for expert in own.stand_ins or ()
    }
    assert gone == {
        (i, e) for i, own in model.layers.items() for e in range(own.n_experts) if e not in kept[i]
    }
    for name, tensor in before.items():
        part = model.family.parse_expert(name)
        spare = (model.family.layer_of(name) or 0) >= model.shape.n_layers
        if spare or (part is not None and (part.layer, part.expert) in gone):
            assert name not in after
        else:
            assert torch.equal(after[name], tensor)


@torch.inference_mode()
def test_every_layer_computes_experts_and_stand_ins(source, lean):
    stream = DecoderStream(open_model(lean))
    blocks, hidden = stand_in_blocks(source, lean), embed_all(stream, [IDS])
    for layer in stream.layers():
        before = [part.clone() for part in hidden]
        step_(layer, hidden)
        if layer.index not in blocks:
            continue
        layer.attend_(before[0])
        x_TD = layer.block_input(before[0])
        expected_TD = before[0].flatten(0, 1) + blocks[layer.index](x_TD)
        torch.testing.assert_close(hidden[0].flatten(0, 1), expected_TD, rtol=1e-4, atol=1e-4)


def test_constants_are_said_as_vllm_says_them_and_maps_are_not(source, lean):
    model, config = open_checkpoint(lean), json.loads((lean / "config.json").read_text())
    how = read_manifest(lean).settings["replace"]["how"]
    ids = {str(i): list(own.stand_ins) for i, own in model.layers.items()}
    if how == "constant":
        assert config["approximate_experts"] == ids and "leanmoe" not in config
    else:
        stated = {i: own["stand_ins"] for i, own in config["leanmoe"]["layers"].items()}
        assert stated == ids and "approximate_experts" not in config
    names = load_file(lean / "model.safetensors")
    ends = {name.rsplit(".", 1)[1] for name in names if ".approx_" in name}
    maps = {"approx_in", "approx_out"} if how != "constant" else set()
    assert ends == {"approx_value"} | maps
    for layer, own in model.layers.items():
        prefix = model.family.block_prefix(layer)
        first = own.stand_ins[0]
        assert (f"{prefix}.gate.layout" in names) == bool(maps)
        marker = names.get(f"{prefix}.gate.{first}.approx_value")
        constant = names[f"{prefix}.experts.{first}.approx_value"]
        assert marker is None if maps else torch.equal(marker, constant)
    before = json.loads((source / "config.json").read_text())
    for key in ("num_local_experts", "n_routed_experts"):
        assert config.get(key) == before.get(key)


@pytest.mark.parametrize("how", ["constant", "lowrank:2"])
def test_commands_read_it(how, mixtral, tmp_path, capsys):
    model = str(tmp_path / "lean")
    assert prune(mixtral, Path(model), "--replace", how, *DATA) == 0
    assert main(["eval", model, *DATA]) == 0
    assert main(["score", model, *DATA, "-o", str(tmp_path / "scores")]) == 0
    assert main(["curve", model, *DATA, "--levels", "3"]) == 0
    assert main(["report", model]) == 0
    card = (Path(model) / "README.md").read_text()
    assert "Its layers differ" not in card and "still runs 2 experts" not in card
    assert ("as stated by vLLM 0.33" in card) == (how == "constant")
    assert "a token may run fewer experts than in the source" in card
    assert main(["plan", model, "--tflops", "1"]) == 0
    out = capsys.readouterr().out
    assert "It has stand-ins in the place of removed experts and cannot be cut" in out


@pytest.mark.parametrize(
    "command",
    [
        ("prune", "--method", "random", "--keep", "6"),
        ("pack", "--pattern", "16:32"),
        ("distill", *DATA, "--steps", "1"),
    ],
)
def test_commands_that_would_change_it_send_to_the_source(command, constants, tmp_path, capsys):
    name, *given = command
    assert main([name, str(constants), *given, "-o", str(tmp_path / "out")]) == 2
    assert "has stand-ins in the place of removed experts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--replace", "lowrank:0", *DATA), "has rank 0, expected 1 to"),
        (("--replace", "lowrank:99999", *DATA), "has rank 99999, expected 1 to"),
        (("--replace", "lowrank:x", *DATA), "is 'lowrank:x', expected none, constant or lowrank:R"),
        (("--replace", "lowrank", *DATA), "is 'lowrank', expected none, constant or lowrank:R"),
        (("--replace", "constant:3", *DATA), "is 'constant:3', expected none"),
        (("--replace", "constant"), "fits stand-ins on text, and score bundles hold none"),
        (("--replace", "constant", "--plan-only", *DATA), "--plan-only do not go together"),
        (("--replace", "constant", "--compress", *DATA), "--compress do not go together"),
    ],
)
def test_what_cannot_be_is_refused(given, words, mixtral, tmp_path, capsys):
    assert prune(mixtral, tmp_path / "out", *given) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["wanda", "m-smoe", "cd-moe"])
def test_methods_that_remove_no_single_experts_are_refused(method, mixtral, tmp_path, capsys):
    given = ("--method", method, "--replace", "constant", *DATA, "-o", str(tmp_path / "out"))
    assert main(["prune", str(mixtral), *given]) == 2
    assert f"--method {method} removes no single experts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"condense": {"0": 0.5}}, "the plan condenses layer 1"),
        ({"merge": {"router": [[1.0] * 8] * 2, "experts": [[1.0] * 8] * 2}}, "merges layer 1"),
        ({"keep": [0, 1, 2, 3, 4, 5, 6, 7]}, "no expert is removed"),
    ],
)
def test_plans_that_do_not_remove_are_refused(layer, words, mixtral, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers": {"1": layer}}))
    given = ("--plan", str(plan), "--replace", "constant", *DATA, "-o", str(tmp_path / "out"))
    assert main(["prune", str(mixtral), *given]) == 2
    assert words in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_may_keep_and_replace_in_single_layers(mixtral, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    plan.write_text('{"layers": {"1": {"keep": [0, 5]}, "2": {"keep": [1, 2, 3], "top_k": 1}}}')
    given = ("--plan", str(plan), "--replace", "constant", *DATA, "-o", str(out))
    assert main(["prune", str(mixtral), *given]) == 0
    layers = open_model(out).layers
    assert layers[0].stand_ins is None and layers[1].stand_ins == (1, 2, 3, 4, 6, 7)
    assert (layers[2].top_k, layers[2].rank) == (1, 0)
    assert main(["eval", str(out), *DATA]) == 0


@pytest.fixture(scope="module")
def scores(mixtral, tmp_path_factory) -> Path:
    """Of other text than ``DATA``, and more of it."""
    out = tmp_path_factory.mktemp("scores") / "s"
    other = ("--data", "builtin:c:3", "--window", "64")
    assert main(["score", str(mixtral), *other, "-o", str(out)]) == 0
    return out


def test_scores_of_other_text_do_not_lend_their_batches(mixtral, scores, tmp_path, capsys):
    progressive = ("--method", "naee", "--variant", "progressive", "--scores", str(scores))
    assert prune(mixtral, tmp_path / "out", *progressive, "--replace", "constant", *DATA) == 2
    assert "leave --scores out" in capsys.readouterr().err


def test_ratios_in_a_dump_are_of_one_text(mixtral, scores, tmp_path):
    found = []
    for name, more in (("plain", ()), ("beside", ("--scores", str(scores)))):
        given = ("--method", "naee", "--replace", "constant", "--dump", str(tmp_path / name), *more)
        assert prune(mixtral, tmp_path / f"{name}-out", *given, *DATA) == 0
        found.append(load_file(tmp_path / name / "results.safetensors")["betas.full"])
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_families_that_stack_their_experts_are_refused(tmp_path, capsys):
    source = write_tiny(tmp_path / "source", "granitemoe")
    given = ("--method", "random", "--keep", "4", "--replace", "constant", *DATA)
    assert main(["prune", str(source), *given, "-o", str(tmp_path / "out")]) == 2
    assert "whose files stack a layer's experts in one tensor" in capsys.readouterr().err


def test_an_expert_that_no_token_reached_becomes_zero_and_is_told_of(mixtral, tmp_path):
    out = tmp_path / "out"
    few = ("--data", "builtin:gen:1", "--window", "2", "--super-experts", "warn")
    assert prune(mixtral, out, "--replace", "lowrank:2", *few) == 0
    notes = read_manifest(out).settings["notes"]
    assert any("so they have zeros in their place" in note for note in notes)
    tensors = load_file(out / "model.safetensors")
    assert any(n.endswith("approx_value") and not t.any() for n, t in tensors.items())


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ([1, 2], "approximate_experts must map decoder layers"),
        ({"0": [1, 1]}, "layer 0 names [1, 1]"),
        ({"0": [-1]}, "layer 0 names [-1]"),
        ({"0": [8]}, "names [8] in layer 0, which has experts 0 to 7"),
        ({"0": [0, 1, 2, 3, 4, 5, 6, 7]}, "must keep one"),
        ({"9": [1]}, "names layer 9, which is no MoE layer"),
        ({"0": [1]}, "is of different models"),
    ],
)
def test_a_config_that_says_nonsense_is_refused(stated, words, constants, tmp_path, capsys):
    copy = Path(shutil.copytree(constants, tmp_path / "copy"))
    (copy / MANIFEST_NAME).unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "approximate_experts": stated}))
    assert main(["eval", str(copy), *DATA]) == 2
    said = capsys.readouterr().err
    assert words in said or (stated == {"0": [1]} and "model.layers" in said)


def test_weights_of_a_removed_expert_are_not_passed_over(constants, tmp_path, capsys):
    copy = Path(shutil.copytree(constants, tmp_path / "copy"))
    (copy / MANIFEST_NAME).unlink()
    model, tensors = open_checkpoint(copy), load_file(copy / "model.safetensors")
    expert = model.layers[0].stand_ins[0]
    tensors[model.family.expert_name(0, expert, "up_proj")] = torch.zeros(4, 4)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert main(["eval", str(copy), *DATA]) == 2
    assert f"says that expert {expert} was removed" in capsys.readouterr().err
