"""What share of a memory's bandwidth a step takes to read weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EXPERTS = ".experts."


@dataclass(frozen=True)
class Traffic:
    """``weight_bytes`` a worker holds, of which the share ``expert_share`` is routed experts,
    ``n_experts`` of them in a layer; the memory reads ``bandwidth`` bytes per second."""

    weight_bytes: int
    expert_share: float
    n_experts: int
    bandwidth: float

    def share(self, distinct_experts: float, step_seconds: float) -> float:
        """Of a step that read ``distinct_experts`` per layer and everything else once."""
        experts = self.expert_share * distinct_experts / self.n_experts
        read = self.weight_bytes * (experts + 1.0 - self.expert_share)
        return read / step_seconds / self.bandwidth


def expert_share(model: Path) -> float:
    """The share of a checkpoint's bytes that are routed experts, from the headers of its shards."""
    sizes = [
        (name, end - start)
        for shard in sorted(model.glob("*.safetensors"))
        for name, (start, end) in _offsets(shard)
    ]
    total = sum(size for _, size in sizes)
    return sum(size for name, size in sizes if _EXPERTS in name) / total if total else 0.0


def _offsets(shard: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield name, tuple(tensor["data_offsets"])
