"""Opening the model a command works on, its manifest checked before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.files.digest import file_digest
from leanmoe.layout import marker_name, transfer_name
from leanmoe.manifest import MANIFEST_NAME, check_files, weights_digest
from leanmoe_pruning.checkpoints.fp8 import block_of, check_scales
from leanmoe_pruning.checkpoints.shards import ShardReader

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# The ends of names of tensors that hold no numbers but their codes.
PACKED = ("_blocks", "_scales")


def open_model(path: Path) -> Checkpoint:
    """The checkpoint at ``path``; raise when its manifest or a file named there was changed."""
    checkpoint = open_checkpoint(path)
    if checkpoint.manifest is not None:
        check_files(path, checkpoint.manifest)
    return checkpoint


def open_runnable_model(path: Path) -> Checkpoint:
    """Like ``open_model``, for work that runs the model: refuses a family known by name only."""
    checkpoint = open_model(path)
    check_runnable(checkpoint)
    return checkpoint


def check_runnable(checkpoint: Checkpoint) -> None:
    """Raise unless the offline forward pass computes models of this family."""
    if find_spec(f"leanmoe_pruning.forward.families.{checkpoint.family.name}") is None:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.family.name} model, whose layers LeanMoE does not "
            "compute by itself: such a model can be pruned with --method random and served, not "
            "scored or measured"
        )


def check_uniform(checkpoint: Checkpoint) -> None:
    """Raise where layers differ: methods decide between layers of equally many experts."""
    if checkpoint.layout.layers:
        raise CheckpointError(
            f"{checkpoint.path} has layers that differ, and methods take models whose layers are "
            "alike; take its source, or cut it by --plan"
        )


def check_complete(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise unless the shards hold the model that config.json describes: no tensor less, no
    layer more, gates and experts of its sizes."""
    family, shape = checkpoint.family, checkpoint.shape
    for name in family.other_names(checkpoint.config):
        reader.check_is_weight(name)
    deepest = max(layer for name in reader.names if (layer := family.layer_of(name)) is not None)
    if deepest >= shape.n_layers + family.spare_layers(checkpoint.config):
        raise CheckpointError(
            f"{checkpoint.path} holds tensors of layer {deepest} and its config.json says "
            f"{shape.n_layers} layers; config and shards are of different models"
        )
    for name, size in block_sizes(checkpoint).items():
        reader.check_shape(name, size)
        if not (shape.packed and name.endswith(PACKED)):
            reader.check_is_weight(name)
    check_scales(reader, block_of(checkpoint.config))


def block_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor of routers and routed experts, as the layout says."""
    family = checkpoint.family
    sizes: dict[str, tuple[int, ...]] = {}
    for layer, own in checkpoint.layers.items():
        shape = replace(checkpoint.shape, n_routed_experts=own.n_experts, top_k=own.top_k)
        sizes |= family.block_sizes(shape, layer)
        if layer in checkpoint.layout.layers:
            sizes[marker_name(family.block_prefix(layer))] = (2,)
        if own.gate_rows is not None:
            sizes[family.gate_name(layer)] = (own.gate_rows, shape.hidden_size)
            name = transfer_name(family.block_prefix(layer))
            sizes[name] = (own.n_experts, own.gate_rows)
    return sizes


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


def model_digest(checkpoint: Checkpoint) -> str:
    """One digest for config and weights of a model that ``open_model`` opened."""
    known = checkpoint.manifest.files if checkpoint.manifest is not None else {}
    return weights_digest(known if "config.json" in known else source_digests(checkpoint.path))
