"""Opening the model a command works on, its manifest checked before anything is computed."""

from __future__ import annotations

from pathlib import Path

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families.base import PROJECTIONS
from leanmoe.manifest import MANIFEST_NAME, check_files
from leanmoe.provenance import file_digest
from leanmoe_pruning.shards import ShardReader

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def open_model(path: Path) -> Checkpoint:
    """The checkpoint at ``path``; raise when its manifest or a file named there was changed."""
    checkpoint = open_checkpoint(path)
    if checkpoint.manifest is not None:
        check_files(path, checkpoint.manifest)
    return checkpoint


def check_complete(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise unless the shards hold the model that config.json describes: no tensor less, no
    layer more, gates and experts of its sizes."""
    family, shape = checkpoint.family, checkpoint.shape
    for name in family.other_names(checkpoint.config):
        reader.check_is_weight(name)
    deepest = max(layer for name in reader.names if (layer := family.layer_of(name)) is not None)
    if deepest >= shape.n_layers:
        raise CheckpointError(
            f"{checkpoint.path} holds tensors of layer {deepest} and its config.json says "
            f"{shape.n_layers} layers; config and shards are of different models"
        )
    wide, narrow = shape.expert_ffn_size, shape.hidden_size
    for layer in shape.moe_layers:
        reader.check_weight(family.gate_name(layer), (shape.n_routed_experts, narrow))
        for expert in range(shape.n_routed_experts):
            for projection in PROJECTIONS:
                size = (narrow, wide) if projection == "down_proj" else (wide, narrow)
                reader.check_weight(family.expert_name(layer, expert, projection), size)


def model_files(path: Path) -> list[Path]:
    """The files a checkpoint consists of, by name; hidden ones and the manifest left out."""
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name != MANIFEST_NAME
    )


def source_digests(path: Path) -> dict[str, str]:
    """Digest of config and weights: what makes this model this model."""
    return {
        file.name: file_digest(file)
        for file in model_files(path)
        if file.name == "config.json" or file.suffix == ".safetensors"
    }
