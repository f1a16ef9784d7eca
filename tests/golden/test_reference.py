"""The embedded reference MoE is rebuilt to the pinned bits."""

from __future__ import annotations

import json

import pytest

from leanmoe.cli import main
from leanmoe.errors import InputError, OutputError
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_reference import build
from leanmoe_reference.artefact import check_artefacts
from leanmoe_reference.models import MODELS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "model"
    assert main(["reference", str(out)]) == 0
    return out


def test_digest_and_size(reference):
    assert build.tensors_digest(reference) == MODELS["mixtral"].tensors
    index = json.loads((reference / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 932
    assert index["metadata"]["total_size"] == 1_384_073_856


@pytest.mark.parametrize(
    ("name", "experts", "size"),
    [
        ("qwen2-moe", 160, 304_672_896),
        ("mixtral-2", 240, 1_384_073_856),
        ("mixtral-3", 240, 1_384_073_856),
    ],
)
def test_models_of_our_own_training_are_rebuilt_to_the_bit(name, experts, size, tmp_path):
    out = tmp_path / "model"
    assert main(["reference", str(out), "--model", name]) == 0
    assert build.tensors_digest(out) == MODELS[name].tensors
    index = json.loads((out / "model.safetensors.index.json").read_text())
    routed = [key for key in index["weight_map"] if ".experts." in key]
    assert len(routed) == 3 * experts
    assert index["metadata"]["total_size"] == size


def test_tokenizer_is_the_one_the_builtin_ids_were_made_with(reference):
    tokenizer = ModelTokenizer(reference)
    assert tokenizer.is_smollm2
    assert tokenizer.encode("a1b22 3 44") == [81, 33, 82, 34, 34, 216, 35, 216, 36, 36]
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}], "test")
    assert ids[0] == 1


def test_damaged_artefact_is_refused(tmp_path):
    files = MODELS["mixtral"].files
    for name in files:
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        check_artefacts(files, tmp_path)


def test_a_differing_rebuild_is_refused(reference):
    with pytest.raises(OutputError, match="differs from the published one"):
        build.check_written(reference, "sha256:other")
