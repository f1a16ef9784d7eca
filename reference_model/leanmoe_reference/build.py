"""Write a reference model, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from leanmoe.errors import OutputError
from leanmoe.files.digest import bytes_digest
from leanmoe_pruning.checkpoints.shards import (
    ShardReader,
    TensorInfo,
    tensor_bytes,
    write_index,
    write_shard,
)
from leanmoe_pruning.progress import Tick
from leanmoe_reference.gguf_base import GGUFBase
from leanmoe_reference.tokenizer import write_tokenizer

N_SHARDS = 3


class Rebuilt(Protocol):
    """A model's tensors by checkpoint name, and its config."""

    @property
    def base(self) -> GGUFBase: ...

    @property
    def n_layers(self) -> int: ...

    def embedding(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def layer(self, layer: int) -> Iterator[tuple[str, torch.Tensor]]: ...

    def config(self) -> dict[str, Any]: ...


def write_reference(model: Rebuilt, directory: Path, tick: Tick) -> None:
    """Write the whole checkpoint into ``directory``, the index last."""
    write_tokenizer(model.base, directory)
    config = model.config()
    _write_json(directory / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", ids)
    shards = {}
    for number in range(N_SHARDS):
        name = f"model-{number + 1:05d}-of-{N_SHARDS:05d}.safetensors"
        shards[name] = _write_one_shard(model, directory / name, number, tick)
    write_index(directory, shards)


def _write_one_shard(model: Rebuilt, path: Path, number: int, tick: Tick) -> list[TensorInfo]:
    tensors = dict(model.embedding()) if number == 0 else {}
    per_shard = -(-model.n_layers // N_SHARDS)
    for layer in range(model.n_layers)[number * per_shard : (number + 1) * per_shard]:
        tensors.update(model.layer(layer))
        tick()
    plan = [TensorInfo.of(name, tensor) for name, tensor in tensors.items()]
    write_shard(path, plan, tensors.values())
    return plan


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tensors_digest(directory: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of their names."""
    reader = ShardReader(directory)

    def parts() -> Iterator[bytes]:
        for name in sorted(reader.names):
            tensor = reader.read(name)
            yield f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode()
            yield tensor_bytes(tensor)

    return bytes_digest(parts())


def check_written(directory: Path, expected: str) -> str:
    """The digest of what was written; raise ``OutputError`` unless it is ``expected``."""
    found = tensors_digest(directory)
    if found != expected:
        raise OutputError(
            f"the rebuilt reference model differs from the published one (found {found}, expected "
            f"{expected}): the disk or the arithmetic of this machine is at fault; "
            "nothing was kept"
        )
    return found
