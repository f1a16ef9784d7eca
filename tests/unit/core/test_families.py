"""A config is recognised, or refused with what is known."""

import json

import pytest

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families import FAMILIES
from leanmoe.families.base import PROJECTIONS


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
    with pytest.raises(CheckpointError, match="'num_local_experts'"):
        _ = open_checkpoint(tmp_path).shape


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_no_directory_and_no_config_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a directory"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_tensor_names_are_read_back(family):
    for projection in PROJECTIONS:
        found = family.parse_expert(family.expert_name(3, 11, projection))
        assert found is not None and (found.layer, found.expert) == (3, 11)
        assert found.projection == projection
    assert family.gate_layer(family.gate_name(7)) == 7
    assert family.parse_expert("model.norm.weight") is None
    assert family.gate_layer(family.expert_name(0, 0, "up_proj")) is None
