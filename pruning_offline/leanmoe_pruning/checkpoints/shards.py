"""Safetensors checkpoints read and written tensor by tensor, every fault in one sentence.

The reader checks that each shard is there and whole when it opens, and that a
tensor is finite when it is read. The writer streams: one tensor in memory at a
time, the digest taken on the way down.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families.base import Stacks
from leanmoe.files.digest import parse_json
from leanmoe.sparse.sparse_format import INPUT_ORDER
from leanmoe_pruning.checkpoints.packed import (
    PackedStack,
    PackedTensor,
    find_packed,
    is_part,
    matrix_of,
)
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.later import torch

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """What a shard's header says about one tensor."""

    name: str
    dtype: StoredType
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorInfo:
        """What a header will say about a tensor."""
        return cls(name, StoredType.of(tensor.dtype), tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; raise unless the file is there and whole."""
    if not path.is_file():
        raise CheckpointError(f"shard {path} is missing; fetch or copy it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else _MAX_HEADER + 1
        text = file.read(length) if length <= min(size, _MAX_HEADER) else b""
    entries = _entries(text, path, size)
    end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if end != size:
        raise CheckpointError(
            f"shard {path} is truncated or damaged: found {size} bytes, expected {end}; "
            "fetch or copy it again"
        )
    infos = {name: _info(name, entry, path) for name, entry in entries.items()}
    _check_layout(path)
    return infos


def _check_layout(path: Path) -> None:
    """Let the library judge offsets, sizes and types: it is what will read the file."""
    try:
        # Not as "pt", whose mapping fails where a shard is larger than memory.
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"shard {path} is damaged ({error}); fetch or copy it again"
        ) from None


def _entries(text: bytes, path: Path, size: int) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = parse_json(text)
        entries.pop("__metadata__", None)
        for entry in entries.values():
            numbers = (*entry["data_offsets"], *entry["shape"])
            if not (all(type(one) is int for one in numbers) and isinstance(entry["dtype"], str)):
                raise TypeError("an entry is of another kind")
            _ = entry["data_offsets"][1]
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"shard {path} ({size} bytes) has no readable safetensors header ({error}): it is "
            "truncated or not a safetensors file; fetch or copy it again"
        ) from None
    return entries


def _info(name: str, entry: dict[str, Any], path: Path) -> TensorInfo:
    known = StoredType.__members__
    if entry["dtype"] not in known:
        raise CheckpointError(
            f"tensor {name} in {path} has dtype {entry['dtype']}, expected one of "
            f"{', '.join(known)}; convert the checkpoint first"
        )
    return TensorInfo(name, known[entry["dtype"]], tuple(entry["shape"]))


def is_finite(tensor: torch.Tensor) -> bool:
    """True when no element is NaN or infinite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.bfloat16)  # which float8 has no extremes of
    # Both extremes carry a NaN along; this is ten times faster than isfinite on bfloat16.
    extremes = torch.stack([tensor.amax(), tensor.amin()])
    return bool(torch.isfinite(extremes).all())


def _check_single(directory: Path) -> None:
    """Raise where there is no file of the whole model, telling what there is instead."""
    if (directory / SINGLE_NAME).is_file():
        return
    held = sorted(one.name for one in directory.iterdir() if one.is_file())
    shards = [name for name in held if name.endswith(".safetensors")]
    others = [name for name in held if name.endswith(WEIGHT_SUFFIXES)]
    if shards:
        raise CheckpointError(
            f"{directory} holds {_some(shards)} and no {INDEX_NAME} that says what is where; "
            "fetch it too"
        )
    if others:
        raise CheckpointError(
            f"{directory} holds its weights as {_some(others)}, and LeanMoE reads safetensors "
            "alone; fetch the model's safetensors files, or write them with transformers: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    raise CheckpointError(
        f"shard {directory / SINGLE_NAME} is missing, and so is {INDEX_NAME}: there are no "
        "weights; fetch or copy them again"
    )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


class ShardReader:
    """The tensors of a checkpoint directory, one file or many, read when asked for.

    ``shards`` names them by file; a packed matrix is one dense tensor there, and packed experts of
    a family that stacks them are one together, as its ``stacks`` say.
    """

    def __init__(self, directory: Path, stacks: Stacks | None = None) -> None:
        self.directory, self._stacks = directory, stacks
        index = directory / INDEX_NAME
        self._file_of = self._from_index(index) if index.is_file() else {}
        if not self._file_of:
            _check_single(directory)
        names = sorted(set(self._file_of.values())) or [SINGLE_NAME]
        self.stored = {name: read_header(self._shard_path(name)) for name in names}
        self._check_index()
        self._check_parts()
        self.packed: dict[str, PackedTensor | PackedStack] = {}
        self.shards = {name: self._shown(name, held) for name, held in self.stored.items()}
        self._check_once()
        self._file_of = {tensor: name for name, held in self.shards.items() for tensor in held}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Those of a checkpoint, as its family names them."""
        return cls(checkpoint.path, checkpoint.family.stacks)

    def _shard_path(self, name: str) -> Path:
        if not name or Path(name).name != name or len(name) > 255:
            raise CheckpointError(
                f"{self.directory / INDEX_NAME} names the shard {name!r:.300}, expected the name "
                "of a file beside it; fetch index and shards into one folder"
            )
        return self.directory / name

    def _from_index(self, index: Path) -> dict[str, str]:
        try:
            content = parse_json(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{index} is not a safetensors index ({error}); fetch it again"
            ) from None
        found = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(found, dict) or not all(type(one) is str for one in found.values()):
            raise CheckpointError(
                f"{index} is not a safetensors index: it has no weight_map of tensors and names of "
                "shards; fetch it again"
            )
        return found

    def _check_index(self) -> None:
        """Raise unless the index, where there is one, lists what its shards hold."""
        for tensor, name in self._file_of.items():
            if tensor not in self.stored[name]:
                raise CheckpointError(
                    f"{self.directory / INDEX_NAME} says that {name} holds {tensor} and it does "
                    "not; fetch index and shard from the same revision"
                )
        for name, held in self.stored.items() if self._file_of else ():
            if unlisted := sorted(held.keys() - self._file_of.keys()):
                raise CheckpointError(
                    f"{self.directory / name} holds {_some(unlisted)} and {INDEX_NAME} does not "
                    "list it; fetch index and shard from the same revision"
                )

    def _check_parts(self) -> None:
        """Raise where the parts of a packed matrix lie in several files."""
        file_of: dict[str, str] = {}
        for file, held in self.stored.items():
            for name in held:
                matrix = matrix_of(name)
                first = file if matrix is None else file_of.setdefault(matrix, file)
                if first != file and name not in self.stored[first]:
                    raise CheckpointError(
                        f"{self.directory} holds parts of the packed matrix {matrix} in {first} "
                        f"and others in {file}, and they belong into one file; pack the model "
                        "again, or save its shards so"
                    )

    def _shown(self, file: str, held: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        sizes = {name: (info.dtype, info.shape) for name, info in held.items()}
        packed = find_packed(sizes, self.directory / file, self._stacks)
        self.packed |= {one.name: one for one in packed}
        plain = {name: info for name, info in held.items() if not is_part(name)}
        if twice := sorted(name for name in self.packed if name in plain):
            raise CheckpointError(
                f"{self.directory / file} holds {_some(twice)} both packed and dense, so it is not "
                "said which is meant; pack the model again"
            )
        return plain | {one.name: TensorInfo(one.name, one.dtype, one.shape) for one in packed}

    def _check_once(self) -> None:
        held: dict[str, str] = {}
        for name, tensors in self.shards.items():
            for tensor in tensors:
                if held.setdefault(tensor, name) != name:
                    raise CheckpointError(
                        f"{tensor} is in {held[tensor]} and in {name} of {self.directory}, so it "
                        "is not said which holds; fetch the checkpoint again"
                    )

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor; raise ``CheckpointError`` when no shard holds it."""
        if name not in self._file_of:
            raise CheckpointError(
                f"{self.directory} has no tensor {name}, which its config.json asks for; "
                "fetch the checkpoint again"
            )
        return self.shards[self._file_of[name]][name]

    def place(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.directory / self._file_of[self.info(name).name]

    def read(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        """One tensor, checked to be finite and, where given, of ``shape``."""
        if shape is not None:
            self.check_weight(name, shape)
        file = self._file_of[self.info(name).name]
        tensor = self._load(file, name)
        if not is_finite(tensor):
            raise CheckpointError(
                f"tensor {name} in {self.directory / file} holds NaN or infinity; "
                "fetch or make the checkpoint again"
            )
        return tensor

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Raise unless a tensor is there and of ``shape``."""
        found = self.info(name).shape
        if found != tuple(shape):
            raise CheckpointError(
                f"tensor {name} in {self.directory / self._file_of[name]} has shape "
                f"{list(found)}, expected {list(shape)} from config.json; config and shards are "
                "of different models"
            )

    def check_weight(self, name: str, shape: Sequence[int]) -> None:
        """Raise unless a weight is there, of ``shape`` and floating-point."""
        self.check_shape(name, shape)
        self.check_is_weight(name)

    def check_is_weight(self, name: str) -> None:
        """Raise unless a tensor that is multiplied with holds floating-point numbers."""
        dtype = self.info(name).dtype
        if not dtype.is_floating_point:
            raise CheckpointError(
                f"weight {name} in {self.directory / self._file_of[name]} has dtype "
                f"{dtype.name}, expected a floating-point one; a quantised checkpoint must be "
                "restored to bf16 first"
            )

    def _load(self, file: str, name: str) -> torch.Tensor:
        # A copy out of a short-lived mapping: mapped pages would count as the process's own.
        with safe_open(self.directory / file, framework="pt") as shard:
            if name in self.packed:
                return self.packed[name].read(shard.get_tensor, self.directory / file)
            tensor: torch.Tensor = shard.get_tensor(name).clone()
        return tensor

    def input_orders(self) -> Iterator[tuple[str, NDArray[np.int32]]]:
        """Matrices whose columns are packed in an order, and that order, file by file."""
        for file, held in self.shards.items():
            with safe_open(self.directory / file, framework="np") as shard:
                for name in held:
                    one = self.packed.get(name)
                    if isinstance(one, PackedTensor) and INPUT_ORDER in one.parts:
                        yield name, shard.get_tensor(one.part_name(INPUT_ORDER))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(info.nbytes for held in self.stored.values() for info in held.values())

    def stored_bytes(self, name: str) -> int:
        """Bytes that a tensor takes in its file."""
        if name not in self.packed:
            return self.info(name).nbytes
        one, held = self.packed[name], self.stored[self._file_of[name]]
        return sum(held[part].nbytes for part in one.part_names)

    def validate(self, tick: Callable[[], None] = lambda: None) -> None:
        """Read every tensor of every shard once; raise at the first that is not finite."""
        for name in self.names:
            self.read(name)
            tick()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw little-endian bytes of a tensor, as safetensors stores them."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def write_shard(path: Path, plan: Sequence[TensorInfo], tensors: Iterable[torch.Tensor]) -> str:
    """Write ``tensors`` in the order of ``plan``; return the file's digest.

    Raises ``OSError`` when the disk is full; the caller's atomic directory cleans up.
    """
    sha = hashlib.sha256()
    with path.open("wb") as file:

        def put(block: bytes) -> None:
            file.write(block)
            sha.update(block)

        put(_header(plan))
        for info, tensor in zip(plan, tensors, strict=True):
            if TensorInfo.of(info.name, tensor) != info:
                raise ValueError(f"{info.name}: {tensor.dtype}{list(tensor.shape)} is not {info}")
            put(tensor_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
    return f"sha256:{sha.hexdigest()}"


def _header(plan: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in plan:
        entries[info.name] = {
            "dtype": info.dtype.name,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write named tensors as one safetensors file; return its digest."""
    plan = [TensorInfo.of(name, tensor) for name, tensor in tensors.items()]
    return write_shard(path, plan, tensors.values())


def write_index(directory: Path, shards: Mapping[str, Sequence[TensorInfo]]) -> None:
    """Write the index of a sharded checkpoint: the last file, so that it only names whole ones."""
    infos = [info for held in shards.values() for info in held]
    content = {
        "metadata": {"total_size": sum(info.nbytes for info in infos)},
        "weight_map": {info.name: name for name, held in shards.items() for info in held},
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (directory / INDEX_NAME).write_text(text, encoding="utf-8")
