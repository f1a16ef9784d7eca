"""Configs as others write them, or of no model at all: read, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import CheckpointError, LeanMoEError
from leanmoe_pruning.checkpoints.opening import open_headers, open_model
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.forward.stream import DecoderStream
from tests.family_references import change_config
from tests.tiny_families import FAMILY_NAMES, write_tiny

KEEP = 6
HEAD = "lm_head.weight"
# What transformers 5.19 and vLLM take for the same key, as their attribute maps say.
SPELLINGS = [
    ("mixtral", "num_local_experts", "num_experts"),
    ("qwen3_moe", "num_experts", "num_local_experts"),
    ("olmoe", "num_experts", "num_local_experts"),
    ("deepseek_v2", "n_routed_experts", "num_experts"),
    ("deepseek_v3", "n_routed_experts", "num_local_experts"),
    ("gpt_oss", "num_local_experts", "num_experts"),
]


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def write_config(path: Path, config: dict[str, Any]) -> None:
    (path / "config.json").write_text(json.dumps(config))


def respell(path: Path, old: str, new: str) -> None:
    config = config_of(path)
    config[new] = config.pop(old)
    write_config(path, config)


def prune(source: Path, out: Path, keep: int = KEEP) -> int:
    return main(["prune", str(source), "--method", "random", "--keep", str(keep), "-o", str(out)])


@pytest.mark.parametrize(("name", "own", "other"), SPELLINGS)
def test_either_spelling_is_read_and_the_one_that_was_there_written(
    tmp_path, name, own, other
) -> None:
    source = write_tiny(tmp_path / "source", name)
    respell(source, own, other)
    assert prune(source, tmp_path / "out") == 0
    written = config_of(tmp_path / "out")
    assert written[other] == KEEP and own not in written
    assert open_checkpoint(tmp_path / "out").shape.n_routed_experts == KEEP


def test_two_spellings_that_agree_both_follow_the_cut(tmp_path) -> None:
    source = write_tiny(tmp_path / "source", "qwen3_moe")
    change_config(source, num_local_experts=8)
    assert prune(source, tmp_path / "out") == 0
    written = config_of(tmp_path / "out")
    assert (written["num_experts"], written["num_local_experts"]) == (KEEP, KEEP)


def test_two_spellings_that_disagree_are_refused(tmp_path) -> None:
    source = write_tiny(tmp_path / "source", "qwen3_moe")
    change_config(source, num_local_experts=6)
    with pytest.raises(CheckpointError, match="num_experts is 8 and num_local_experts, which mea"):
        open_headers(source)


def test_layers_for_prediction_under_their_other_name(tmp_path) -> None:
    source = write_tiny(tmp_path / "source", "deepseek_v3")
    respell(source, "num_nextn_predict_layers", "num_mtp_layers")
    assert prune(source, tmp_path / "out") == 0
    written = config_of(tmp_path / "out")
    assert written["num_mtp_layers"] == 0 and "num_nextn_predict_layers" not in written


def test_what_transformers_saves_is_read_for_every_family_it_has(tmp_path) -> None:
    """Its config classes write the keys, names of architectures aside; two are told to be added."""
    import transformers

    for name in FAMILY_NAMES:
        if name == "deepseek":  # which it has no class for
            continue
        source = write_tiny(tmp_path / name, name)
        before = config_of(source)
        kind = getattr(transformers, before["architectures"][0].replace("PhiMoE", "Phimoe"))
        left_out = ("architectures", "model_type", "scoring_func", "topk_method")
        drop = left_out if name == "deepseek_v3" else left_out[:2]
        given = {key: value for key, value in before.items() if key not in drop}
        kind.config_class(**given).save_pretrained(source)
        saved = {**config_of(source), "architectures": before["architectures"]}
        write_config(source, saved)
        if name == "deepseek_v3":
            with pytest.raises(CheckpointError) as told:
                open_headers(source)
            said = '"scoring_func": "sigmoid", "topk_method": "noaux_tc"'
            assert f"add {said}" in str(told.value)
            write_config(source, {**saved, **json.loads(f"{{{said}}}")})
        model = open_headers(source)
        write_config(source, before)
        assert model.shape == open_headers(source).shape


WRONG = [None, True, "text", "7", -1, 0, 1.5, 10**30, [], {}, ["x"], {"a": 1}]
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Each family's tiny model once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_tiny(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


def run_through(path: Path, config: dict[str, Any]) -> None:
    """Open, check and run a model two tokens long; only what a user may read is raised."""
    before = (path / "config.json").read_text()
    write_config(path, config)
    try:
        stream = DecoderStream(open_model(path))
        hidden = stream.embed(torch.tensor([[2, 3]]))
        for layer in stream.layers():
            layer.attend_(hidden)
            layer.block_input(hidden)
        stream.logits(hidden[0])
    except LeanMoEError as error:
        assert error.exit_code == 2 and len(str(error).splitlines()) == 1
    finally:
        (path / "config.json").write_text(before)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_value_of_a_config_ends_in_a_traceback(tiny, data) -> None:
    name = data.draw(st.sampled_from(FAMILY_NAMES))
    path = tiny(name)
    config = config_of(path)
    key = data.draw(st.sampled_from([*config, "rope_parameters", "layer_types", "head_dim"]))
    if data.draw(st.booleans()):
        config.pop(key, None)
    else:
        config[key] = data.draw(st.sampled_from(WRONG))
    run_through(path, config)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rope_parameters": {**_ROPE, "rope_type": "nope"}},
            "rope_type is 'nope', expected one of default",
        ),
        ({"rope_parameters": {**_ROPE, "rope_theta": "text"}}, "rope_theta is 'text'"),
        ({"rope_parameters": {**_ROPE, "rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": {**_ROPE, "rope_theta": None}}, "rope_theta is None"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": "text"}, "rope_theta is 'text'"),
        ({"sliding_window": "7"}, "sliding_window is '7'"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings is 'many'"),
    ],
)
def test_what_turns_positions_is_named(tiny, change, said) -> None:
    path = tiny("mixtral")
    before = (path / "config.json").read_text()
    config = json.loads(before)
    if "rope_parameters" in change:
        del config["rope_theta"]
    write_config(path, {**config, **change})
    try:
        with pytest.raises(CheckpointError, match=said):
            DecoderStream(open_model(path))
    finally:
        (path / "config.json").write_text(before)


@pytest.mark.parametrize("command", ["eval", "score", "plan", "curve"])
def test_a_config_without_a_vocabulary(tmp_path, capsys, command) -> None:
    source = write_tiny(tmp_path / "source", "mixtral")
    config = config_of(source)
    del config["vocab_size"]
    write_config(source, config)
    more = [] if command == "plan" else ["--data", "builtin:gen:1"]
    out = ["-o", str(tmp_path / "out")] if command == "score" else []
    assert main([command, str(source), *more, *out]) == 2
    assert "it has no key 'vocab_size'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"hidden_size": 1, "hidden_size": 2}', "the key 'hidden_size' is there twice"),
        ('{"rope": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        ('{"rms_norm_eps": NaN}', "NaN is no number"),
        ('{"rms_norm_eps": -Infinity}', "-Infinity is no number"),
        ('{"rms_norm_eps": 1e999}', "1e999 is too large a number"),
    ],
)
def test_json_that_readers_disagree_about(tmp_path, text, said) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


# vLLM's classes of these have a head of their own whatever the config says.
UNTIED = ("olmoe", "deepseek", "deepseek_v2", "deepseek_v3", "phimoe", "gpt_oss")


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_tied_head_is_taken_where_vllm_ties_it_and_named_elsewhere(tmp_path, capsys, name):
    source = write_tiny(tmp_path / "source", name)
    change_config(source, tie_word_embeddings=True)
    tensors = {key: one.clone() for key, one in load_file(source / "model.safetensors").items()}
    tensors.pop(HEAD, None)
    write_tensors(source / "model.safetensors", tensors)
    assert prune(source, tmp_path / "out") == (2 if name in UNTIED else 0)
    if name in UNTIED:
        said = capsys.readouterr().err
        assert "ties the head to the embedding, which vLLM does not do" in said and HEAD in said


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_head_of_its_own_is_used_though_the_config_ties_it(tmp_path, name) -> None:
    source = write_tiny(tmp_path / "source", name, dtype="float32")
    hidden = torch.ones(1, open_headers(source).shape.hidden_size)
    before = DecoderStream(open_model(source)).logits(hidden)
    change_config(source, tie_word_embeddings=True)
    assert torch.equal(DecoderStream(open_model(source)).logits(hidden), before)


@pytest.mark.parametrize("said", [0, None])
def test_prediction_layers_that_the_config_leaves_out(tmp_path, capsys, said) -> None:
    source = write_tiny(tmp_path / "source", "deepseek_v3")
    config = config_of(source)
    config.pop("num_nextn_predict_layers")
    write_config(source, config if said is None else {**config, "num_nextn_predict_layers": said})
    assert prune(source, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "for multi-token prediction" in told and '"num_nextn_predict_layers": 1' in told
    change_config(source, num_nextn_predict_layers=1)
    assert prune(source, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.8.w1.weight"),
        ("qwen2_moe", "model.layers.1.mlp.experts.0.up_proj.weight"),  # a dense layer
        ("qwen2_moe", "model.layers.1.mlp.gate.weight"),
        ("deepseek_v3", "model.layers.2.mlp.experts.31.down_proj.weight"),
    ],
)
def test_an_expert_that_the_config_does_not_have(tmp_path, capsys, name, place) -> None:
    source = write_tiny(tmp_path / "source", name)
    tensors = {key: one.clone() for key, one in load_file(source / "model.safetensors").items()}
    tensors[place] = torch.zeros(4, 4, dtype=torch.bfloat16)
    write_tensors(source / "model.safetensors", tensors)
    assert prune(source, tmp_path / "out") == 2
    assert f"holds {place} and its config.json says that layer" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prune", "eval"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}),
        ("deepseek", {"n_shared_experts": None}),
    ],
)
def test_a_shared_expert_that_the_config_does_not_have(tmp_path, capsys, name, change, command):
    source = write_tiny(tmp_path / "source", name)
    change_config(source, **change)
    if command == "prune":
        assert prune(source, tmp_path / "out") == 2
    else:
        assert main(["eval", str(source), "--data", "builtin:gen:1", "--window", "8"]) == 2
    said = capsys.readouterr().err
    assert "shared_expert" in said and "tells of no shared expert" in said


@pytest.mark.parametrize("command", ["prune", "eval"])
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("lm_head.bias", "which a mixtral model has not"),
        ("model.layers.0.block_sparse_moe.gate.bias", "a part of a MoE block"),
        ("model.layers.2.block_sparse_moe.experts.3.w1.weight_scale", "a part of a MoE block"),
    ],
)
def test_a_part_that_no_family_tells_of_is_refused_before_any_work(
    tmp_path, capsys, tensor, said, command
):
    source = write_tiny(tmp_path / "source", "mixtral")
    tensors = {key: one.clone() for key, one in load_file(source / "model.safetensors").items()}
    write_tensors(source / "model.safetensors", {**tensors, tensor: torch.ones(4)})
    data = ["--data", "builtin:gen:1", "--window", "8"]
    done = prune(source, tmp_path / "out") if command == "prune" else None
    assert (main(["eval", str(source), *data]) if done is None else done) == 2
    told = capsys.readouterr().err
    assert tensor in told and said in told and told.count("\n") == 1
