"""Puts the checks of ``layer_checks.py`` to the first MoE layer of a real engine, in its worker.

Not for serving: it runs the layer outside of any step. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_bench.gpu.layer_checks import Inputs, run_all
from leanmoe_runtime.compat import forward_context, scratch_tensors
from leanmoe_runtime.device.layer import DeviceLayer
from leanmoe_runtime.device.modes import is_naive
from leanmoe_runtime.device.tiles import TILES

_TIMED_ROWS = (1, 8, 32, 256, 1024)


class RealLayer:
    """``layer_checks.Subject`` on a loaded layer."""

    def __init__(self, runner: Any, vllm_config: Any, device: torch.device) -> None:
        self.router, self.experts = runner.router, runner.routed_experts
        self.state, self.vllm_config, self._device = runner.skip_state, vllm_config, device
        self.engine: Any = self.experts.engine
        self.decide: DeviceLayer = self.router._compute_routing.decide
        self.stock_routing = type(self.router)._compute_routing.__get__(self.router)

    def inputs(self, tokens: int, seed: int) -> Inputs:
        random = torch.Generator(self._device).manual_seed(seed)
        sizes = (self.experts.hidden_size, self.experts.global_num_experts)
        hidden, logits = (
            torch.randn(tokens, size, generator=random, device=self._device) for size in sizes
        )
        dtype = self.experts.params_dtype
        return hidden.to(dtype), logits.to(dtype)

    def _run(self, inputs: Inputs) -> torch.Tensor:
        hidden, logits = inputs
        dtype = self.experts.quant_method.topk_indices_dtype
        with torch.inference_mode(), forward_context(self.vllm_config, len(hidden)):
            weights, ids = self.router.select_experts(hidden, logits, topk_indices_dtype=dtype)
            out: torch.Tensor = self.experts.forward_modular(hidden.clone(), weights, ids)
        return out

    def stock(self, inputs: Inputs) -> torch.Tensor:
        ours = self.router.__dict__.pop("_compute_routing")
        # Stock's router, sum and tiles, and no map.
        self._as(SkipMode.ZERO)
        TILES.finer = False
        try:
            return self._run(inputs).clone()
        finally:
            TILES.finer = True
            self.router._compute_routing = ours
            self._as(None)

    def ours(self, inputs: Inputs, beta: float, *, zero: bool = False) -> torch.Tensor:
        self._as(SkipMode.ZERO if zero else None)
        try:
            self._begin(len(inputs[0]), beta)
            return self._run(inputs).clone()
        finally:
            self._as(None)

    def replayer(self, inputs: Inputs) -> Callable[[float], torch.Tensor]:
        self._begin(len(inputs[0]), 0.0)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._run(inputs)

        def replay(beta: float) -> torch.Tensor:
            self._begin(len(inputs[0]), beta)
            graph.replay()
            return out

        return replay

    def poison(self) -> None:
        """Bytes of 255 are NaN in every float format used; freed memory is poisoned as well."""
        for scratch in scratch_tensors():
            scratch.view(torch.uint8).fill_(255)
        blocks = [
            torch.full((1 << bits,), 255, dtype=torch.uint8, device=self._device)
            for bits in range(12, 27)
            for _ in range(2)
        ]
        del blocks

    def skipped(self) -> int:
        return int(self.state.counts().skipped)

    def border(self) -> int:
        """Largest number of tokens on the path without alignment; 0 for none."""
        kernel: Any = self.experts.quant_method.moe_kernel.fused_experts
        top_k, local = self.experts.top_k, self.experts.local_num_experts
        return max((m for m in range(1, local) if is_naive(kernel, m, top_k, local)), default=0)

    def _as(self, mode: SkipMode | None) -> None:
        """Run by ``mode``, or by the layer's own."""
        self.experts.take_mode(mode)
        self.decide.forget_mode()

    def restore(self) -> None:
        """As it was before the checks."""
        self.state.set_beta(0.0)
        self.engine.state.token_rows_T = None
        self.engine.step.reset()

    def _begin(self, tokens: int, beta: float) -> None:
        self.state.set_beta(beta)
        # Rows of the step, so that level 0 launches as well.
        rows_T = torch.zeros(tokens, dtype=torch.int32, device="cpu")
        self.engine.state.token_rows_T = rows_T
        self.engine.step.begin(rows_T, tokens)


def _milliseconds(call: Callable[[], object], rounds: int = 50) -> float:
    """Median over ``rounds`` on the device's clock."""
    taken: list[float] = []
    for _ in range(rounds):
        start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return median(taken)


def routing_microseconds(layer: RealLayer, rows: int, beta: float | None) -> float:
    """Device time of one routing inside a graph of a hundred; without a beta, of stock's."""
    hidden, logits = layer.inputs(rows, seed=5)
    layer._begin(rows, beta or 0.0)
    route = layer.stock_routing if beta is None else layer.router._compute_routing
    graph = torch.cuda.CUDAGraph()
    with forward_context(layer.vllm_config, rows):
        route(hidden, logits, None)
        with torch.cuda.graph(graph):
            for _ in range(100):
                route(hidden, logits, None)
    return 1e3 * _milliseconds(graph.replay, 20) / 100


def routing_times(layer: RealLayer) -> dict[str, Any]:
    """By number of rows, or the error: a check that broke the device is to be told all the same."""
    cases = {"stock_us": None, "exact_us": 0.0, "skipping_us": 0.6}
    try:
        times = {
            str(rows): {
                name: round(routing_microseconds(layer, rows, beta), 2)
                for name, beta in cases.items()
            }
            for rows in _TIMED_ROWS
        }
        layer.restore()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return times


def probe_layer(vllm_config: Any, device: torch.device, tolerance: float) -> dict[str, Any]:
    """The four checks of the engine's first MoE layer, its mode, and what its routing takes."""
    compilation = vllm_config.compilation_config
    name = compilation.static_all_moe_layers[0]
    runner = compilation.static_forward_context[name]
    layer = RealLayer(runner, vllm_config, device)
    kernel = layer.experts.quant_method.moe_kernel.fused_experts
    border = layer.border()
    checks = run_all(layer, border, tolerance)
    return {
        "layer": name,
        "experts_class": type(kernel).__name__,
        "mode": layer.experts.device_mode().value,
        "naive_border": border,
        "checks": checks,
        "routing_us": routing_times(layer),
    }
