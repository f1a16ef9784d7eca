"""The models of the run: two real shapes at whole depth, and a small one for the layer checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from leanmoe.errors import InputError
from leanmoe.messages import UnionBudget
from leanmoe.sparse.sparse_format import CONFIG_KEY, SparseFormat
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.shapes import PlainShape, Shape

# The pattern of the packed engine, and the share of a dense expert's bytes that it takes.
PACKED, PACKED_SHARE = "16:32", 0.5625
_WIDTHS = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Qwen3Shape(PlainShape):
    """A Qwen3-MoE-architecture model: many narrow experts, normalised queries and keys."""

    def config(self) -> dict[str, object]:
        own = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.ffn,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "attention_bias": False,
        }
        return {**super().config(), **own}


@dataclass(frozen=True)
class GpuModel:
    """A model made from its config alone.

    ``spread`` is the standard deviation of its router logits: what real models' gate ratios are
    like. ``skipping`` is the case between exact and top-1, ``budget`` half of the experts.
    """

    shape: Shape
    spread: float
    skipping: Case
    budget: int | None = None
    dtype: str = "bfloat16"
    whole: bool = True

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return _WIDTHS[self.dtype]

    @property
    def cases(self) -> tuple[Case, ...]:
        """What is timed beside stock."""
        return (Case("level0"), self.skipping, Case("top1", beta=1.0))

    @property
    def budget_cases(self) -> tuple[Case, ...]:
        """On engines that could bound the experts of a step: without the bound and with it."""
        if self.budget is None:
            return ()
        return (Case("budget_off"), Case("budget", union=UnionBudget(experts=self.budget)))

    @property
    def packed_cases(self) -> tuple[Case, ...]:
        """On an engine with packed experts beside a dense one."""
        return (Case(PACKED, pattern=PACKED), Case("16:32+top1", beta=1.0, pattern=PACKED))

    def packed_config(self) -> dict[str, Any]:
        """The same with experts of half of the weights, packed."""
        how = SparseFormat.of_pattern(PACKED, "bfloat16")
        return {**self.config(), CONFIG_KEY: how.to_config()}

    def config(self) -> dict[str, Any]:
        """The whole of what vLLM reads."""
        own = {"tie_word_embeddings": False, "max_position_embeddings": 8192}
        return {**self.shape.config(), **own}

    @cached_property
    def weight_bytes(self) -> int:
        """Of all weights, the embedding and the head apart from each other; norms left out."""
        return int(self.step_bytes(self.shape.experts)) + self.width * self.shape.head_parameters

    def step_bytes(self, distinct: float) -> float:
        """Weight bytes of a step that reads ``distinct`` experts a layer."""
        shape = self.shape
        router = shape.hidden * shape.experts
        layer = shape.attention_parameters + router + distinct * shape.expert_parameters
        return self.width * (shape.layers * layer + shape.head_parameters)

    def of_depth(self, layers: int | None) -> GpuModel:
        """The model with so many layers; ``None`` for all."""
        if layers is None or layers == self.shape.layers:
            return self
        if not 1 <= layers <= self.shape.layers:
            raise InputError(
                f"--layers is {layers}, and {self.name} has 1 to {self.shape.layers} here; "
                f"give a number between them"
            )
        return replace(self, shape=replace(self.shape, layers=layers), whole=False)

    def tiny(self) -> GpuModel:
        """The same architecture at a size for a rehearsal on a CPU.

        In float32: there the CPU's experts give a token the same bits whoever runs beside it.
        """
        few = self.shape.top_k == 2
        shape = replace(
            self.shape,
            hidden=128,
            ffn=128,
            experts=8 if few else 16,
            top_k=2 if few else 4,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=32,
            vocabulary=512,
        )
        return replace(self, shape=shape, budget=self.budget and 8, dtype="float32", whole=False)


# Its border between the Triton experts' two paths lies at 4 tokens (4 * top-2 * 4 <= 32).
CHECKED = Shape(
    name="check",
    hidden=1024,
    ffn=1024,
    experts=32,
    top_k=2,
    layers=2,
    heads=8,
    kv_heads=2,
    head_dim=128,
    vocabulary=8192,
)
MODELS = {
    model.name: model
    for model in (
        GpuModel(
            Qwen3Shape(
                name="qwen3-30b-a3b",
                hidden=2048,
                ffn=768,
                experts=128,
                top_k=8,
                layers=48,
                heads=32,
                kv_heads=4,
                head_dim=128,
                vocabulary=151936,
            ),
            spread=1.0,  # 40 % of all assignments lie under 0.47 of the largest
            skipping=Case("skip40", skipped=0.4),
            budget=64,
        ),
        # 20 of its 32 layers: with all, two engines would take 186 GiB.
        GpuModel(
            Shape(
                name="mixtral-8x7b",
                hidden=4096,
                ffn=14336,
                experts=8,
                top_k=2,
                layers=20,
                heads=32,
                kv_heads=8,
                head_dim=128,
                vocabulary=32000,
            ),
            spread=1.8,  # the second expert's weight is half the first's, at the median
            skipping=Case("median", skipped=0.25),
        ),
    )
}
