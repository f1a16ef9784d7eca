"""The golden NAEE checkpoint as a small real model, whole and in shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from leanmoe.checkpoint import open_checkpoint
from leanmoe_pruning import progress
from leanmoe_pruning.checkpoints.shards import TensorInfo, write_index, write_shard
from tests.golden.naee_data import CHECKPOINT
from tests.one_thread import one_thread

__all__ = ["one_thread"]


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch) -> None:
    """On a busy machine work may take half a minute, and tests count lines."""
    monkeypatch.setattr(progress, "EVERY", 3600.0)


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy that a test may damage."""
    path = tmp_path / "model"
    shutil.copytree(CHECKPOINT, path)
    (path / "tokenizer_config.json").write_text("{}")
    return path


@pytest.fixture
def sharded(model) -> Path:
    """The same weights in three shards with an index."""
    tensors = load_file(model / "model.safetensors")
    # Deleted, not overwritten: the tensors still map it.
    (model / "model.safetensors").unlink()
    names = list(tensors)
    shards = {}
    for number in range(3):
        held = {name: tensors[name] for name in names[number::3]}
        plan = [TensorInfo.of(name, tensor) for name, tensor in held.items()]
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        write_shard(model / file, plan, held.values())
        shards[file] = plan
    write_index(model, shards)
    return model


@pytest.fixture
def change_config(model):
    def change(**values: object) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.fixture
def with_tokenizer(model):
    """The tiny model with a byte tokenizer of its own, 128 tokens: not SmolLM2's."""
    vocabulary = {chr(index + 0x100): index for index in range(32)}
    vocabulary |= {chr(index): index for index in range(33, 127)}
    vocabulary |= {"Ġ": 32}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(model / "tokenizer.json"))
    return open_checkpoint(model)
