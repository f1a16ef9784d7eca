"""What a run was asked for, and the sizes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leanmoe_bench.engines.measures import Measure, decode, prefill
from leanmoe_bench.gpu.fit import KV_BYTES, Card, share
from leanmoe_bench.gpu.models import GpuModel

BATCHES = (1, 4, 8, 16, 32, 64)
_STEPS = {1: 64, 4: 40, 8: 40, 16: 32, 32: 24, 64: 20}
_REHEARSED_STEPS = 4
_CAPTURED = (1, 2, 4, 8, 16, 32, 64)
# An engine in the arm's own process can be profiled and listened to.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Settings:
    """The options of the command; ``card`` is ``None`` in a rehearsal."""

    card: Card | None
    graphs: str = "full"
    rounds: int = 5
    decode: tuple[int, ...] = BATCHES
    prefill: tuple[int, ...] = (2048,)
    layers: int | None = None
    seed: int = 0
    limit: float = 235.0
    command_line: list[str] = field(default_factory=list)

    @property
    def rehearses(self) -> bool:
        return self.card is None

    def model(self, whole: GpuModel) -> GpuModel:
        """A model at the size of this run."""
        return (whole.tiny() if self.rehearses else whole).of_depth(self.layers)

    @property
    def measures(self) -> list[Measure]:
        """What is timed. Prompts of one token: every step of a decode has as many tokens."""
        steps = {
            batch: _REHEARSED_STEPS if self.rehearses else _STEPS.get(batch, 24)
            for batch in self.decode
        }
        decodes = [decode(batch, tokens, prompt=1) for batch, tokens in steps.items()]
        return decodes + [prefill(length) for length in self.prefill]

    def flags(self, model: GpuModel) -> dict[str, Any]:
        """What both engines get."""
        longest = max((256, *self.prefill)) + 256
        common: dict[str, Any] = {
            "dtype": model.dtype,
            "load_format": "random",
            "max_model_len": longest,
            "max_num_seqs": max(_CAPTURED),
            "max_num_batched_tokens": longest,
            "enable_prefix_caching": False,
        }
        return {**common, **(self._on_cpu() if self.card is None else self._on_gpu(model))}

    def _on_cpu(self) -> dict[str, Any]:
        return {"kv_cache_memory_bytes": 1 << 26, "enforce_eager": self.graphs == "full"}

    def _on_gpu(self, model: GpuModel) -> dict[str, Any]:
        assert self.card is not None
        whole = {"mode": 0, "cudagraph_mode": "FULL"} if self.graphs == "full" else {}
        return {
            "kv_cache_memory_bytes": KV_BYTES,
            "gpu_memory_utilization": share(model, self.card),
            "moe_backend": "triton",
            "compilation_config": {"cudagraph_capture_sizes": list(_CAPTURED), **whole},
        }
