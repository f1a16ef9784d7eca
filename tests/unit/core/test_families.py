"""A config is recognised, or refused with what is known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import CheckpointError, InputError
from leanmoe.families import FAMILIES, ExpertTensor
from leanmoe.families.base import PROJECTIONS
from tests.tiny_families import CONFIGS, FAMILY_NAMES, tensor_shapes, tiny_config

MIXTRAL_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "num_hidden_layers": 3,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 128,
    "intermediate_size": 64,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}


def write_config(path, **config):
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_dense_model_is_refused(tmp_path):
    write_config(tmp_path, architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"is a dense model.*MixtralForCausalLM"):
        open_checkpoint(tmp_path)


def test_an_unknown_architecture_lists_the_known(tmp_path):
    write_config(tmp_path, architectures=["GrokForCausalLM"], num_experts=8)
    with pytest.raises(CheckpointError, match=r"GrokForCausalLM.*known: MixtralForCausalLM"):
        open_checkpoint(tmp_path)


def test_a_missing_key_is_named(tmp_path):
    write_config(tmp_path, architectures=["MixtralForCausalLM"], num_hidden_layers=2)
    with pytest.raises(CheckpointError, match="'num_experts_per_tok'"):
        _ = open_checkpoint(tmp_path).shape


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_no_directory_and_no_config_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a directory"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(InputError, match="https://hub/a, an address, expected a path"):
        open_checkpoint(Path("https://hub/a"))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


PER_EXPERT = [family for family in FAMILIES if not family.stacked]
STACKED = [family for family in FAMILIES if family.stacked]
by_name = pytest.mark.parametrize("name", FAMILY_NAMES)


def config_of(name):
    return tiny_config(name) if name != "mixtral" else MIXTRAL_CONFIG


def family_named(name):
    return next(family for family in FAMILIES if family.name == name)


def test_every_family_has_a_tiny_model():
    assert sorted(FAMILY_NAMES) == sorted(family.name for family in FAMILIES)


@pytest.mark.parametrize("family", PER_EXPERT, ids=lambda family: family.name)
@given(
    layer=st.integers(0, 999), expert=st.integers(0, 999), projection=st.sampled_from(PROJECTIONS)
)
def test_tensor_names_are_read_back(family, layer, expert, projection):
    name = family.expert_name(layer, expert, projection)
    assert family.parse_expert(name) == ExpertTensor(layer, expert, projection)
    assert name.startswith(f"{family.block_prefix(layer)}.")
    assert family.layer_of(name) == layer
    assert family.expert_rows(name) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@given(layer=st.integers(0, 999))
def test_the_router_s_rows_count_experts_and_nothing_else_does(family, layer):
    assert family.expert_rows(family.gate_name(layer)) == layer
    assert family.parse_expert(family.gate_name(layer)) is None
    for other in ("model.norm.weight", f"{family.gate_name(layer)}.scale", f"x.{layer}"):
        assert family.expert_rows(other) is None
        assert family.parse_expert(other) is None


@pytest.mark.parametrize("family", STACKED, ids=lambda family: family.name)
def test_a_stacked_family_has_no_tensor_per_expert(family):
    with pytest.raises(ValueError, match="stacks its experts"):
        family.expert_name(0, 3, "up_proj")
    assert family.parse_expert("model.layers.0.block_sparse_moe.experts.0.w1.weight") is None


@pytest.mark.parametrize("name", CONFIGS)
def test_block_and_other_names_are_the_whole_model(name):
    family, config = family_named(name), config_of(name)
    shape, sizes = family.shape(config), tensor_shapes(config)
    blocks = [family.block_sizes(shape, layer) for layer in shape.moe_layers]
    for block in blocks:
        assert {one: sizes[one] for one in block} == block
    named = [*family.other_names(config), *(one for block in blocks for one in block)]
    assert len(set(named)) == len(named)
    spare = {one for one in sizes if (family.layer_of(one) or 0) >= shape.n_layers}
    assert set(named) == set(sizes) - spare
    assert bool(spare) == bool(family.spare_layers(config))


EXPECTED = {
    # MoE layers, top-k, expert width, renormalises, groups, least kept
    "mixtral": ((0, 1, 2), 2, 64, True, 1, 2),
    "qwen2_moe": ((0, 2), 4, 64, False, 1, 4),
    "qwen3_moe": ((0, 1, 2), 3, 64, True, 1, 3),
    "olmoe": ((0, 1, 2), 4, 64, False, 1, 4),
    "deepseek": ((1, 2), 3, 64, False, 1, 3),
    "deepseek_v2": ((1, 2), 3, 64, False, 2, 4),
    "deepseek_v3": ((1, 2), 3, 64, True, 2, 6),
    "granitemoe": ((0, 1, 2), 3, 64, True, 1, 3),
    "phimoe": ((0, 1, 2), 2, 64, False, 1, 2),
    "gpt_oss": ((0, 1, 2), 3, 64, True, 1, 3),
}


@by_name
def test_shapes_say_what_vllm_runs(name):
    shape = family_named(name).shape(config_of(name))
    assert (
        shape.moe_layers,
        shape.top_k,
        shape.expert_ffn_size,
        shape.renormalize,
        shape.n_groups,
        shape.least_keep,
    ) == EXPECTED[name]
    assert (shape.n_layers, shape.n_routed_experts, shape.hidden_size) == (3, 8, 128)


@by_name
def test_a_cut_config_describes_a_model_of_the_family(name):
    family, config = family_named(name), config_of(name)
    keep = family.shape(config).least_keep
    cut = family.cut_config(config, keep)
    assert family.shape(cut) == replace(family.shape(config), n_routed_experts=keep)
    assert cut["architectures"][0] in family.architectures
    assert family.spare_layers(cut) == 0


@by_name
def test_every_key_that_matters_is_asked_for_in_a_sentence(name):
    family, config = family_named(name), config_of(name)
    for key in config:
        without = {one: value for one, value in config.items() if one != key}
        wrong = {**config, key: object()}
        for broken, said in ((without, f"it has no key '{key}'"), (wrong, f"{key} is <object")):
            try:
                family.shape(broken)
            except ValueError as error:
                assert str(error).startswith(said) and "\n" not in str(error)
    for key in ("hidden_size", "num_experts_per_tok", "intermediate_size"):
        with pytest.raises(ValueError, match=f"has no key '{key}'"):
            family.shape({one: value for one, value in config.items() if one != key})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("olmoe", {"num_experts": 3}, "num_experts_per_tok is 4, more than the 3 of num_experts"),
        ("qwen2_moe", {"mlp_only_layers": [0, 1, 2]}, "leave no layer with experts"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ("deepseek", {"first_k_dense_replace": 3}, "leave no layer with experts"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v3", {"n_group": 3}, "n_routed_experts 8 is no multiple of n_group 3"),
        ("deepseek_v3", {"n_group": 4}, "a group has 2 experts and the router needs 3 in each"),
        ("deepseek_v3", {"topk_group": 5}, "topk_group is 5, more than n_group 2"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("granitemoe", {"num_key_value_heads": 3}, "is no multiple of num_key_value_heads 3"),
        ("phimoe", {"num_experts_per_tok": 4}, "num_experts_per_tok is 4"),
        ("phimoe", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias is False"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "mxfp4"}, "intermediate_size": 40},
            "no multiples of MXFP4's block of 32",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(name, change, said):
    with pytest.raises(ValueError, match=said):
        family_named(name).shape({**config_of(name), **change})


@pytest.mark.parametrize(
    ("name", "change", "weight"),
    [
        ("mixtral", {}, 1 / 6),
        ("qwen2_moe", {}, 1 / 6),
        ("granitemoe", {}, 1 / 6),
        ("deepseek", {}, 1 / 6),
        ("deepseek", {"scoring_func": "sigmoid"}, 0.5),
        ("deepseek_v2", {}, 1.5 / 6),
        ("deepseek_v2", {"n_group": 4, "topk_group": 4}, 1.5 / 6),
        ("deepseek_v3", {}, 2.5 / 6),
        ("deepseek_v3", {"topk_group": 2, "norm_topk_prob": False}, 1.25),
        ("phimoe", {}, None),
        ("gpt_oss", {}, None),
    ],
)
def test_the_weight_of_equal_logits(name, change, weight):
    found = family_named(name).uniform_weight({**config_of(name), **change}, 6)
    assert found == (weight if weight is None else pytest.approx(weight))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "deepseek"])
def test_tiny_models_have_the_names_transformers_saves(name, tmp_path):
    """transformers fuses experts in memory and writes the files' names; it has no DeepSeek 1."""
    import transformers
    from safetensors import safe_open

    config = tiny_config(name)
    kind = getattr(transformers, config["architectures"][0].replace("PhiMoE", "Phimoe"))
    left_out = ("architectures", "model_type")
    settings = {key: value for key, value in config.items() if key not in left_out}
    kind(kind.config_class(**settings)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {one: tuple(file.get_slice(one).get_shape()) for one in file.keys()}  # noqa: SIM118
    mine = tensor_shapes({**config, "num_nextn_predict_layers": 0})
    assert mine == saved
