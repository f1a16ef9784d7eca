"""vLLM's fused experts on the card: random weights of one shape, timed inside CUDA graphs.

As the plugin serves them: with its sum over computed rows, and tiles narrowed where one expert
would leave the card idle. The only module of the bench that imports vLLM's kernels. Every graph
holds several passes over
different experts and, where a layer is small, different layers, so that weights come from memory
and not from the cache that the pass before filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import vllm
from triton.errors import TritonError
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe import MoEActivation, override_config
from vllm.model_executor.layers.fused_moe.config import (
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
    fp8_w8a8_moe_quant_config,
)
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.fused_moe import try_get_optimal_moe_config
from vllm.model_executor.layers.fused_moe.utils import moe_kernel_quantize_input
from vllm.platforms import current_platform

from leanmoe.errors import InputError
from leanmoe.tuned_tables import Tiles
from leanmoe_bench.tune.choice import Kept
from leanmoe_bench.tune.kernel_shapes import TuneShape
from leanmoe_bench.tune.loop import TilesError
from leanmoe_runtime.compat import wrap_triton_call
from leanmoe_runtime.device.masking import sum_of_computed
from leanmoe_runtime.device.tiles import with_finer_tiles

TABLES = Path(vllm.__file__).parent / "model_executor/layers/fused_moe/configs"
VERSIONS = {"vllm": vllm.__version__, "triton": triton.__version__, "torch": torch.__version__}
_PASSES = 16
# Weights of so many caches' size are read before any is read again.
_CACHES = 3
_LEAST_SECONDS = 0.004
_MOST_GRAPHS = 64
_MARGIN_BYTES = 1 << 30


def has_gpu() -> bool:
    """Whether vLLM's kernels can run on a CUDA device here."""
    return bool(torch.cuda.is_available() and current_platform.is_cuda())


def card_name() -> str:
    return str(current_platform.get_device_name())


def own_choice(shape: TuneShape, batch: int) -> Tiles:
    """What vLLM would take: its table's row where it has one for this shape, else its rule."""
    weights = shape.weights
    chosen = try_get_optimal_moe_config(
        (shape.experts, 2 * shape.width, shape.hidden),
        (shape.experts, shape.hidden, shape.width),
        shape.top_k,
        weights.selector,
        batch,
        block_shape=list(weights.block_shape) if weights.block_shape else None,
    )
    return Tiles(**{key: value for key, value in chosen.items() if key != "SPLIT_K"})


@dataclass(frozen=True)
class Layer:
    """The weights of one layer's experts on one rank, and vLLM's class that runs them."""

    gate_up: torch.Tensor
    down: torch.Tensor
    experts: Any


@dataclass(frozen=True)
class Inputs:
    """What every pass at one batch size is given; ids and weights differ from pass to pass."""

    hidden: torch.Tensor
    scale: torch.Tensor | None
    ids: dict[Kept, torch.Tensor]
    weights: dict[Kept, torch.Tensor]
    workspaces: tuple[torch.Tensor, torch.Tensor]
    output: torch.Tensor


class ExpertsBench:
    """The ``Bench`` of one shape on ``device``."""

    def __init__(self, shape: TuneShape, seed: int, device: str = "cuda") -> None:
        self.shape, self._device = shape, torch.device(device)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._dtype = getattr(torch, shape.weights.dtype)
        _narrow_tiles(self._device)
        with _quiet_vllm():
            self._layers = [self._layer() for _ in range(self._copies())]
        self._batch: int | None = None

    def _copies(self) -> int:
        if self._device.type != "cuda":
            return 1
        cache = torch.cuda.get_device_properties(self._device).L2_cache_size
        copies = max(1, -(-_CACHES * cache // self.shape.layer_bytes))
        free, _ = torch.cuda.mem_get_info(self._device)
        needed = copies * self.shape.layer_bytes + _MARGIN_BYTES
        if needed > free:
            raise InputError(
                f"{card_name()} has {free / 2**30:.1f} GiB free and {self.shape.experts} experts "
                f"of width {self.shape.width} take {needed / 2**30:.1f}; free memory, use a larger "
                "card, or give a larger --tp"
            )
        return int(copies)

    def _layer(self) -> Layer:
        shape = self.shape
        gate_up = self._random(2 * shape.width, shape.hidden)
        down = self._random(shape.hidden, shape.width)
        config = FusedMoEConfig(
            num_experts=shape.experts,
            experts_per_token=shape.top_k,
            hidden_dim=shape.hidden,
            intermediate_size=shape.width,
            num_local_experts=shape.experts,
            num_logical_experts=shape.experts,
            activation=MoEActivation.SILU,
            device=self._device,
            routing_method=RoutingMethodType.Renormalize,
            moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
            in_dtype=self._dtype,
        )
        experts: Any = TritonExperts(config, self._quantisation())
        experts.moe_sum = sum_of_computed(experts.moe_sum)
        return Layer(gate_up, down, experts)

    def _random(self, rows: int, columns: int) -> torch.Tensor:
        """Weights of about unit gain, made an expert at a time: fp8 keeps its gain in scales."""
        is_fp8 = self.shape.weights.selector == "fp8_w8a8"
        kind = current_platform.fp8_dtype() if is_fp8 else self._dtype
        size = (self.shape.experts, rows, columns)
        made = torch.empty(size, dtype=kind, device=self._device)
        for expert in made:
            drawn = self._normal(rows, columns)
            expert.copy_((drawn if is_fp8 else drawn * columns**-0.5).to(kind))
        return made

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self._generator, device=self._device)

    def _quantisation(self) -> Any:
        block, shape = self.shape.weights.block_shape, self.shape
        if block is None:
            return FUSED_MOE_UNQUANTIZED_CONFIG

        def scales(rows: int, columns: int) -> torch.Tensor:
            size = (shape.experts, -(-rows // block[0]), -(-columns // block[1]))
            return torch.full(size, columns**-0.5, dtype=torch.float32, device=self._device)

        return fp8_w8a8_moe_quant_config(
            w1_scale=scales(2 * shape.width, shape.hidden),
            w2_scale=scales(shape.hidden, shape.width),
            block_shape=list(block),
        )

    @property
    def shared_bytes(self) -> int:
        """Shared memory a block of threads can have."""
        properties: Any = torch.cuda.get_device_properties(self._device)
        return int(properties.shared_memory_per_block_optin)

    def seconds(self, batch: int, tiles: Tiles, kept: Kept) -> float:
        """Mean over the passes of one graph, replayed until the clock is coarse no more."""
        graph = self._graph(batch, tiles, kept)
        once = _replay(graph, 1)
        times = max(1, int(_LEAST_SECONDS / once) + 1)
        return _replay(graph, times) / (times * _PASSES)

    def same_bits(self, batch: int, tiles: Tiles) -> bool:
        self._use(batch)
        own = own_choice(self.shape, batch)
        for kept in Kept:
            if kept not in self._expected:
                self._expected[kept] = self._result(own, kept)
            if not torch.equal(self._result(tiles, kept), self._expected[kept]):
                return False
        return True

    def _use(self, batch: int) -> None:
        if batch == self._batch:
            return
        self._batch, self._inputs = batch, self._draw(batch)
        self._graphs: dict[tuple[Tiles, Kept], Any] = {}
        self._expected: dict[Kept, torch.Tensor] = {}

    def _draw(self, batch: int) -> Inputs:
        shape = self.shape
        scores = self._normal(_PASSES, batch, shape.experts)
        ids = scores.topk(shape.top_k, dim=-1).indices.int()
        logits = self._normal(*ids.shape)
        weights = logits.softmax(-1).sort(-1, descending=True).values
        first_ids, first_weights = torch.full_like(ids, -1), torch.zeros_like(weights)
        first_ids[..., 0], first_weights[..., 0] = ids[..., 0], 1.0
        hidden = self._normal(batch, shape.hidden).to(self._dtype)
        scale = None
        if shape.weights.block_shape is not None:
            hidden, scale = moe_kernel_quantize_input(
                hidden,
                None,
                current_platform.fp8_dtype(),
                False,
                list(shape.weights.block_shape),
            )
        return Inputs(
            hidden,
            scale,
            {Kept.ALL: ids, Kept.TOP1: first_ids},
            {Kept.ALL: weights, Kept.TOP1: first_weights},
            *self._memory(batch),
        )

    def _memory(self, batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        shape, experts = self.shape, self._layers[0].experts
        sizes = experts.workspace_shapes(
            batch,
            2 * shape.width,
            shape.hidden,
            shape.top_k,
            shape.experts,
            shape.experts,
            None,
            MoEActivation.SILU,
        )
        try:
            first, second, output = (
                torch.zeros(size, dtype=self._dtype, device=self._device) for size in sizes
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{card_name()} has no memory for {batch} tokens beside the experts; leave that "
                "size out of --batch"
            ) from error
        return (first, second), output

    def _pass(self, number: int, kept: Kept) -> None:
        """What vLLM's modular kernel does with routed tokens, at ``number``'s choice of experts."""
        inputs, layer = self._inputs, self._layers[number % len(self._layers)]
        ids = inputs.ids[kept][number]
        layer.experts.apply(
            output=inputs.output,
            hidden_states=inputs.hidden,
            w1=layer.gate_up,
            w2=layer.down,
            topk_weights=inputs.weights[kept][number],
            topk_ids=ids,
            activation=MoEActivation.SILU,
            global_num_experts=self.shape.experts,
            expert_map=None,
            a1q_scale=inputs.scale,
            a2_scale=None,
            workspace13=inputs.workspaces[0],
            workspace2=inputs.workspaces[1],
            expert_tokens_meta=None,
            apply_router_weight_on_input=False,
        )

    def _result(self, tiles: Tiles, kept: Kept) -> torch.Tensor:
        with _tiles(tiles):
            self._pass(0, kept)
        return self._inputs.output.clone()

    def _graph(self, batch: int, tiles: Tiles, kept: Kept) -> Any:
        self._use(batch)
        if len(self._graphs) >= _MOST_GRAPHS:
            self._graphs.clear()
        if (tiles, kept) not in self._graphs:
            with _tiles(tiles):
                self._graphs[tiles, kept] = _captured(partial(self._passes, kept))
        return self._graphs[tiles, kept]

    def _passes(self, kept: Kept) -> None:
        for number in range(_PASSES):
            self._pass(number, kept)


def _narrow_tiles(device: torch.device) -> None:
    """Let the kernel take a table's tiles as it does beside the plugin."""
    if device.type == "cuda":
        wrap_triton_call("invoke_fused_moe_triton_kernel", with_finer_tiles)


@contextmanager
def _quiet_vllm() -> Iterator[None]:
    """vLLM's classes ask for the engine's settings; there is no engine here."""
    with set_current_vllm_config(VllmConfig()):
        yield


@contextmanager
def _tiles(tiles: Tiles) -> Iterator[None]:
    """Let vLLM take ``tiles``, and tell what does not fit the card from what is wrong."""
    failure: BaseException | None = None
    with override_config(tiles.keys()):
        try:
            yield
        except BaseException as error:  # vLLM's manager undoes the choice on an ordinary end alone
            failure = error
    if isinstance(failure, TritonError):
        raise TilesError(f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}")
    if failure is not None:
        raise failure


def _captured(work: Any) -> Any:
    work()  # compiles; nothing may do so during a capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return graph


def _replay(graph: Any, times: int) -> float:
    """Seconds of ``times`` replays by the card's own clock."""
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
