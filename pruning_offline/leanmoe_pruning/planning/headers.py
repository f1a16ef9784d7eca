"""A model as its ``config.json`` and the headers of its shards describe it.

Opening it reads no tensor and no manifest digest: a model of any size takes a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from leanmoe.checkpoint import Checkpoint
from leanmoe_pruning.checkpoints.opening import OpenedModel, open_headers
from leanmoe_pruning.checkpoints.shards import ShardReader, TensorInfo
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.cutting.packing import expert_types
from leanmoe_pruning.precision import FLOAT32, default_precision


@dataclass(frozen=True)
class HeaderModel:
    """Sizes of one checkpoint; parameters are numbers of weights, not bytes."""

    checkpoint: OpenedModel
    reader: ShardReader

    @classmethod
    def open(cls, path: Path) -> HeaderModel:
        """Raise ``CheckpointError`` where config and headers do not make one whole model."""
        checkpoint = open_headers(path)
        return cls(checkpoint, checkpoint.reader)

    @property
    def infos(self) -> list[TensorInfo]:
        return [self.reader.info(name) for name in self.reader.names]

    @cached_property
    def weight_bytes(self) -> int:
        return self.reader.weight_bytes

    @cached_property
    def compute_bytes(self) -> int:
        """Bytes of a weight as the offline stage multiplies with it, unless told otherwise."""
        is_whole = default_precision(self._router_dtype.itemsize) == FLOAT32
        return 4 if is_whole else 2

    @property
    def _router_dtype(self) -> StoredType:
        shape = self.checkpoint.shape
        return self.reader.info(self.checkpoint.family.gate_name(shape.moe_layers[0])).dtype

    @cached_property
    def expert_types(self) -> Mapping[StoredType, TensorInfo]:
        """Types of the experts' weights, where they can be taken apart."""
        return expert_types(self.checkpoint, self.reader)

    @cached_property
    def served_share(self) -> float:
        """Bytes in an engine's memory per byte in the file: vLLM serves float32 as bfloat16."""
        return 2 / max(2, self._router_dtype.itemsize)

    @cached_property
    def layer_parameters(self) -> Counter[int]:
        """Parameters of every decoder layer, its experts among them."""
        return self._count(lambda info: True)

    @cached_property
    def expert_parameters(self) -> Counter[int]:
        """Parameters of every MoE layer's routed experts together."""
        return self._count(self._is_expert)

    def _count(self, wanted: Callable[[TensorInfo], bool]) -> Counter[int]:
        found: Counter[int] = Counter()
        for info in self.infos:
            layer = self.checkpoint.family.layer_of(info.name)
            if layer is not None and layer < self.checkpoint.shape.n_layers and wanted(info):
                found[layer] += prod(info.shape)
        return found

    def _is_expert(self, info: TensorInfo) -> bool:
        family = self.checkpoint.family
        if family.parse_expert(info.name) is not None:
            return True
        return family.stacked and family.expert_rows(info.name) is not None and len(info.shape) > 2

    @cached_property
    def dense_parameters(self) -> int:
        """Parameters every token meets in the layers: attention, norms, shared experts."""
        return sum(self.layer_parameters.values()) - sum(self.expert_parameters.values())

    @cached_property
    def routed_parameters(self) -> int:
        """Parameters of the experts that one token is routed to, over all layers."""
        layers = self.checkpoint.layers
        return sum(
            count * layers[layer].top_k // layers[layer].n_experts
            for layer, count in self.expert_parameters.items()
        )

    @cached_property
    def largest_tensor_bytes(self) -> int:
        return max(info.nbytes for info in self.infos)

    @cached_property
    def largest_layer_bytes(self) -> int:
        """The largest decoder layer as the offline stage holds it."""
        return max(self.layer_parameters.values()) * self.compute_bytes

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """An estimate: two bytes a number, every layer keeps every token."""
        return 2 * self.checkpoint.shape.n_layers * kv_numbers(self.checkpoint)


def kv_numbers(checkpoint: Checkpoint) -> int:
    """Numbers a token leaves in one layer's cache: keys and values, or their latent (DeepSeek)."""
    config = checkpoint.config
    latent = config.get("kv_lora_rank")
    if latent:
        return int(latent) + int(config["qk_rope_head_dim"])
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return 2 * width * int(config.get("num_key_value_heads") or heads)
