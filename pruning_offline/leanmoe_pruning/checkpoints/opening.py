"""Opening the model a command works on: checked and hashed once, then handed on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families.base import Family
from leanmoe.families.names import HEAD, HEAD_BIAS
from leanmoe.files.digest import file_digest
from leanmoe.files.output import TOKENIZER_FOLDERS, TUNED_FOLDER
from leanmoe.layout import marker_name, transfer_name
from leanmoe.manifest import MANIFEST_NAME, check_files, weights_digest
from leanmoe.sparse.packing import check_one_order
from leanmoe.sparse.sparse_format import (
    INPUT_ORDER,
    PARTS,
    WEIGHT,
    SparseFormat,
    lost_settings,
    own_quantization,
    says_float8,
)
from leanmoe.stand_ins import constants_marker_name, stand_in_name, stand_in_sizes
from leanmoe_pruning.checkpoints.fp8 import FP8, SCALE, block_of, check_scales, scaled_weight
from leanmoe_pruning.checkpoints.packed import PackedStack, PackedTensor
from leanmoe_pruning.checkpoints.shards import WEIGHT_SUFFIXES, ShardReader
from leanmoe_pruning.forward.families import RUNNABLE
from leanmoe_pruning.progress import progress

_KNOWN_FOLDERS = (TUNED_FOLDER, *TOKENIZER_FOLDERS)
# The ends of names of tensors that hold no numbers but their codes.
PACKED = ("_blocks", "_scales")


@dataclass(frozen=True)
class OpenedModel(Checkpoint):
    """A checkpoint and what was found out about its files, by whoever asked first."""

    # Digests that were taken while the manifest was checked.
    hashed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def reader(self) -> ShardReader:
        """Its tensors: the model that config.json describes, no more and no less."""
        reader = ShardReader.of(self)
        check_complete(self, reader)
        return reader

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of config and weights: what makes this model this model."""
        files = [
            file
            for file in model_files(self.path)
            if file.name == "config.json" or file.suffix == ".safetensors"
        ]
        found = {}
        with progress(f"{self.path.name}: hashing files", len(files)) as tick:
            for file in files:
                found[file.name] = self.hashed.get(file.name) or file_digest(file)
                tick()
        return found

    @property
    def digest(self) -> str:
        """One digest for config and weights."""
        known = self.hashed if "config.json" in self.hashed else self.digests
        return weights_digest(known)


def open_headers(path: Path) -> OpenedModel:
    """The checkpoint at ``path``, no file hashed: a model of any size takes a moment."""
    found = open_checkpoint(path)
    _ = found.shape  # every other key is read in the trust that these are what they should be
    return OpenedModel(found.path, found.config, found.family)


def open_model(path: Path) -> OpenedModel:
    """The checkpoint at ``path``; raise when its manifest or a file named there was changed."""
    model = open_headers(path)
    if model.manifest is None:
        return model
    with progress(f"{path.name}: checking files", len(model.manifest.files)) as tick:
        check_files(path, model.manifest, tick)
    return replace(model, hashed=model.manifest.files)


def open_runnable_model(path: Path) -> OpenedModel:
    """Like ``open_model``, for work that runs the model: refuses a family known by name only."""
    model = open_model(path)
    check_runnable(model)
    return model


def check_runnable(checkpoint: Checkpoint) -> None:
    """Raise unless the offline forward pass computes models of this family."""
    if checkpoint.family.name not in RUNNABLE:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.family.name} model, whose layers LeanMoE does not "
            "compute by itself: such a model can be pruned with --method random and served, not "
            "scored or measured"
        )


def check_uniform(checkpoint: Checkpoint) -> None:
    """Raise where layers differ: methods decide between layers of equally many experts."""
    usual = (checkpoint.shape.n_routed_experts, checkpoint.shape.top_k)
    if any(
        own.condensed or own.gate_rows or (own.n_experts, own.top_k) != usual
        for own in checkpoint.layout.layers.values()
    ):
        raise CheckpointError(
            f"{checkpoint.path} has layers that differ, and methods take models whose layers are "
            "alike; take its source, or cut it by --plan"
        )


def check_no_stand_ins(checkpoint: Checkpoint, what: str) -> None:
    """Raise where constants or maps stand in for experts, which ``what`` does not reckon with."""
    if checkpoint.has_stand_ins:
        raise CheckpointError(
            f"{checkpoint.path} has stand-ins in the place of removed experts, and {what} takes "
            "models without; take the model that it was cut from"
        )


def unpacked_note(model: Checkpoint, out: Path) -> str | None:
    """What to say where a packed model is read and written dense; ``None`` where it is not."""
    if model.packing is None:
        return None
    return (
        f"{model.path} has packed experts and {out} holds its own dense, zeros included; `leanmoe "
        f"pack {out}` stores them packed"
    )


def check_complete(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise unless the shards hold the model that config.json describes: no tensor less, no
    layer more, gates and experts of its sizes."""
    family, shape = checkpoint.family, checkpoint.shape
    _check_head(checkpoint, reader)
    for name in family.other_names(checkpoint.config):
        reader.check_is_weight(name)
    _check_depth(checkpoint, reader)
    for name, size in block_sizes(checkpoint).items():
        reader.check_shape(name, size)
        if not (shape.packed and name.endswith(PACKED)):
            reader.check_is_weight(name)
    _check_no_other_expert(checkpoint, reader)
    _check_no_other_shared_expert(checkpoint, reader)
    _check_no_other_part(checkpoint, reader)
    _check_packing(checkpoint, reader)
    _check_float8(checkpoint, reader)
    check_scales(reader, block_of(checkpoint))
    _check_orders(checkpoint, reader)


def _check_float8(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise where config.json tells of float8 weights and there are none: engines read codes."""
    _ = checkpoint.packing  # whose inner settings are these
    said = says_float8(own_quantization(checkpoint.config))
    if said and not any(reader.info(name).dtype == FP8 for name in reader.names):
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} says that weights are quantised as fp8, and no "
            f"tensor of {checkpoint.path} is {FP8}; config and shards are of different models: "
            "take the config that belongs to them, or take its quantization_config out"
        )


def _check_head(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise where a config ties a head that vLLM does not tie in this family."""
    tied = checkpoint.config.get("tie_word_embeddings") and not checkpoint.family.ties_head
    if tied and HEAD not in reader:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} ties the head to the embedding, which vLLM does "
            f"not do for {checkpoint.family.name}, and no shard holds {HEAD}; write the embedding "
            'under that name too and say "tie_word_embeddings": false'
        )


def _check_depth(checkpoint: Checkpoint, reader: ShardReader) -> None:
    family, said = checkpoint.family, checkpoint.shape.n_layers
    layers = (family.layer_of(name) for name in reader.names)
    deepest = max(layer for layer in layers if layer is not None)
    spare = family.spare_layers(checkpoint.config)
    if deepest < said + spare:
        return
    if family.spare_key is not None:
        raise CheckpointError(
            f"{checkpoint.path} holds tensors of layer {deepest} and its config.json says "
            f"{said} layers and {spare} more for multi-token prediction; if these are such "
            f'layers, say "{family.spare_key}": {deepest + 1 - said} there'
        )
    raise CheckpointError(
        f"{checkpoint.path} holds tensors of layer {deepest} and its config.json says "
        f"{said} layers; config and shards are of different models"
    )


def _check_no_other_expert(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise where a shard holds a router or an expert that config.json does not tell of."""
    family, layers = checkpoint.family, checkpoint.layers
    for name in reader.names:
        part, rows = family.parse_expert(name.removesuffix(SCALE)), family.expert_rows(name)
        layer = rows if part is None else part.layer
        if layer is None or layer >= checkpoint.shape.n_layers:
            continue
        count = layers[layer].n_experts if layer in layers else 0
        if part is not None and layer in layers and part.expert in (layers[layer].stand_ins or ()):
            raise CheckpointError(
                f"{checkpoint.path} holds {name} and its config.json says that expert "
                f"{part.expert} was removed; config and shards are of different models"
            )
        if layer not in layers or (part is not None and part.expert >= count):
            raise CheckpointError(
                f"{checkpoint.path} holds {name} and its config.json says that layer {layer} has "
                f"{count or 'no'} experts; config and shards are of different models"
            )


def _check_no_other_shared_expert(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise where a shard holds a shared expert that config.json does not tell of."""
    family = checkpoint.family
    if family.parts.shared_expert is None:
        return
    layers = [i for i in checkpoint.shape.moe_layers if checkpoint.shared_expert(i) is None]
    starts = tuple(f"{family.block_prefix(i)}.{family.parts.shared_expert}" for i in layers)
    found = next((name for name in reader.names if name.startswith(starts)), None)
    if found is not None:
        raise CheckpointError(
            f"{checkpoint.path} holds {found} and its config.json tells of no shared expert; "
            "config and shards are of different models"
        )


def _check_no_other_part(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise where a shard holds a bias of the head, or a part of a MoE block, of another family."""
    family = checkpoint.family
    known = {*family.other_names(checkpoint.config), *block_sizes(checkpoint)}
    known |= {
        constants_marker_name(family.block_prefix(layer), own.stand_ins)
        for layer, own in checkpoint.layers.items()
        if own.stand_ins
    }
    if HEAD_BIAS in reader and HEAD_BIAS not in known:
        raise CheckpointError(
            f"{checkpoint.path} holds {HEAD_BIAS}, which a {family.name} model has not; config and "
            "shards are of different models"
        )
    blocks = tuple(f"{family.block_prefix(layer)}." for layer in checkpoint.layers)
    for name in reader.names:
        weight = scaled_weight(name, reader) or name
        if weight.startswith(blocks) and weight not in known:
            raise unknown_part(checkpoint.path, weight)


def unknown_part(path: Path, name: str) -> CheckpointError:
    """What to say of a tensor of a MoE block that no family tells of."""
    return CheckpointError(
        f"{path} holds {name}, a part of a MoE block that belongs to experts in a way LeanMoE does "
        "not know (a scale of quantised weights?); restore the checkpoint to plain bf16 weights "
        "first"
    )


def _check_packing(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise unless all experts are packed as config.json says, or none are."""
    how = checkpoint.packing
    experts = [name for name in reader.names if is_expert(checkpoint.family, name)]
    if others := sorted(reader.packed.keys() - experts):
        raise CheckpointError(
            f"tensor {others[0]} in {reader.place(others[0])} is packed and no matrix of a "
            "routed expert, which alone are packed; pack the model again"
        )
    if how is None and reader.packed:
        raise lost_settings(f"tensor {min(reader.packed)}", checkpoint.path)
    for name in dict.fromkeys((*reader.packed, *(experts if how is not None else ()))):
        one = reader.packed.get(name)
        found = "dense" if one is None else f"packed with {one.keep} of every 32 weights"
        said = "dense" if how is None else f"packed with {how.keep} of every 32 weights"
        if found != said:
            raise CheckpointError(
                f"tensor {name} in {reader.place(name)} is {found} and config.json says "
                f"experts are {said}; config and shards are of different models"
            )
        if one is not None and how is not None:
            _check_parts(checkpoint, reader.place(name), one, how)


def _check_orders(checkpoint: Checkpoint, reader: ShardReader) -> None:
    """Raise unless gate and up projection of a packed expert have their columns in one order."""
    waiting: dict[tuple[int, int], NDArray[np.int32]] = {}
    for name, order in reader.input_orders():
        part = checkpoint.family.parse_expert(name)
        assert part is not None, "only experts are packed"
        other = waiting.pop((part.layer, part.expert), None)
        if other is None:
            waiting[part.layer, part.expert] = order
        else:
            what = f"expert {part.expert} of layer {part.layer}, {name} in {reader.place(name)}"
            check_one_order(other, order, what)


def is_expert(family: Family, name: str) -> bool:
    """Whether a tensor holds a matrix of an expert, or of all in a family that can pack stacks."""
    stacked = family.stacks is not None and bool(family.stacks.held(name))
    return stacked or family.parse_expert(name) is not None


def _check_parts(
    checkpoint: Checkpoint, file: Path, one: PackedTensor | PackedStack, how: SparseFormat
) -> None:
    """Raise unless a matrix is packed in the parts and numbers that config.json tells."""
    part = checkpoint.family.parse_expert(one.name)
    ordered = how.input_orders and part is not None and part.projection != "down_proj"
    expected = {*PARTS[how.layout], *([INPUT_ORDER] if ordered else [])}
    if set(one.parts) == expected and str(one.dtype) == how.dtype:
        return
    raise CheckpointError(
        f"tensor {one.name} in {file} is packed as {_listed(one.parts)} of {one.dtype} "
        f"and config.json says {_listed(expected)} of {how.dtype}; config and shards are of "
        "different models"
    )


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(sorted(part.removeprefix(f"{WEIGHT}_") for part in parts))


def block_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor of routers and routed experts, as the layout says."""
    family = checkpoint.family
    sizes: dict[str, tuple[int, ...]] = {}
    for layer, own in checkpoint.layers.items():
        shape = replace(checkpoint.shape, n_routed_experts=own.n_experts, top_k=own.top_k)
        sizes |= _with_stand_ins(checkpoint, layer, family.block_sizes(shape, layer))
        if layer in checkpoint.layout.layers:
            sizes[marker_name(family.block_prefix(layer))] = (2,)
        if own.gate_rows is not None:
            sizes[family.gate_name(layer)] = (own.gate_rows, shape.hidden_size)
            name = transfer_name(family.block_prefix(layer))
            sizes[name] = (own.n_experts, own.gate_rows)
    return sizes


def _with_stand_ins(
    checkpoint: Checkpoint, layer: int, whole: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A layer's tensors with those of stand-ins in the place of removed experts'."""
    family, own = checkpoint.family, checkpoint.layers[layer]
    if own.stand_ins is None:
        return whole
    parts = {name: family.parse_expert(name) for name in whole}
    left = {
        name: size
        for name, size in whole.items()
        if (part := parts[name]) is None or part.expert not in own.stand_ins
    }
    sizes = stand_in_sizes(checkpoint.shape.hidden_size, own.rank or 0)
    return left | {
        stand_in_name(family, layer, expert, part): size
        for expert in own.stand_ins
        for part, size in sizes.items()
    }


def tokenizer_files(path: Path) -> list[Path]:
    """The files in folders that belong to a checkpoint's tokenizer."""
    return [
        file
        for folder in TOKENIZER_FOLDERS
        if (path / folder).is_dir()
        for file in sorted((path / folder).iterdir())
        if file.is_file() and not file.name.startswith(".")
    ]


def left_behind(path: Path, known: Collection[str]) -> list[str]:
    """What a copy of a checkpoint leaves out, hidden files aside: folders, other weights."""
    held = [one for one in path.iterdir() if not one.name.startswith(".")]
    folders = [f"{one.name}/" for one in held if one.is_dir() and one.name not in _KNOWN_FOLDERS]
    deeper = [
        f"{folder}/{one.name}/"
        for folder in TOKENIZER_FOLDERS
        if (path / folder).is_dir()
        for one in (path / folder).iterdir()
        if one.is_dir()
    ]
    weights = [
        one.name
        for one in held
        if one.is_file() and one.suffix in WEIGHT_SUFFIXES and one.name not in known
    ]
    return sorted((*folders, *deeper, *weights))


def model_files(path: Path) -> list[Path]:
    """The files a checkpoint consists of, by name; hidden ones and the manifest left out."""
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name != MANIFEST_NAME
    )
