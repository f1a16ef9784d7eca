"""The shapes of a checkpoint whose tiles are tuned: what one rank's experts kernel is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.tuned_tables import TableName

_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Weights:
    """Of which numbers experts are made, in the model's words and as vLLM selects tables."""

    dtype: str
    selector: str | None = None
    block_shape: tuple[int, int] | None = None

    @property
    def bytes(self) -> int:
        """Of one weight, its share of a scale left out."""
        return 1 if self.selector == "fp8_w8a8" else 2


@dataclass(frozen=True)
class TuneShape:
    """Experts, top-k, hidden size and an expert's FFN width on one rank."""

    experts: int
    top_k: int
    hidden: int
    width: int
    weights: Weights

    def table(self, card: str) -> TableName:
        """The name of its table on ``card``."""
        own = self.weights
        return TableName(self.experts, self.width, card, own.selector, own.block_shape)

    @property
    def layer_bytes(self) -> int:
        """Of one layer's routed experts on one rank."""
        return 3 * self.experts * self.hidden * self.width * self.weights.bytes


def weights_of(config: Mapping[str, Any], where: str) -> Weights:
    """The numbers of a model's experts; ``InputError`` for those whose kernel is another."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype = dtype.removeprefix("torch.")
    if dtype not in _DTYPES:
        raise InputError(
            f"{where} says dtype {dtype!r}, and bench tune measures {', '.join(_DTYPES)}"
        )
    # vLLM serves float32 files in bf16 unless told otherwise.
    dtype = "bfloat16" if dtype == "float32" else dtype
    stored = config.get("quantization_config")
    if stored is None:
        return Weights(dtype)
    method, block = stored.get("quant_method"), stored.get("weight_block_size")
    if method != "fp8" or not (isinstance(block, list) and len(block) == 2):
        raise InputError(
            f"{where} has weights quantised as {method!r}, and bench tune measures plain weights "
            "and fp8 in blocks (weight_block_size): vLLM's other kernels take no such table, or "
            "leave nothing out"
        )
    return Weights(dtype, "fp8_w8a8", (int(block[0]), int(block[1])))


def shapes_of(checkpoint: Checkpoint, tp: int) -> list[TuneShape]:
    """One shape per number of experts among the layers that route, at its commonest top-k."""
    whole = checkpoint.shape.expert_ffn_size
    if tp < 1 or whole % tp:
        raise InputError(f"--tp is {tp}, and experts of width {whole} do not divide into as many")
    weights = weights_of(checkpoint.config, str(checkpoint.path / "config.json"))
    routing = [own for own in checkpoint.layers.values() if not own.condensed]
    if not routing:
        raise InputError(f"{checkpoint.path} has no layer that routes, so nothing to tune for")
    kinds = Counter((own.n_experts, own.top_k) for own in routing)
    commonest: dict[int, int] = {}
    for (experts, top_k), _ in kinds.most_common():
        commonest.setdefault(experts, top_k)
    hidden = checkpoint.shape.hidden_size
    return [
        TuneShape(experts, top_k, hidden, whole // tp, weights)
        for experts, top_k in sorted(commonest.items())
    ]
