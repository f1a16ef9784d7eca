"""The arm of a comparison of whole-depth models: what a GPU run asks for beside tokens.

The engine lives in this process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``), so that its kernels can be
profiled and its routers listened to. The load format ``random`` draws weights and reads none.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from leanmoe_bench.engines.arm import Answer, Arm
from leanmoe_bench.gpu.routing import Choice, gate_statistics, recount

RANDOM = "random"
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_ROUTER = re.compile(r"\.gate\.weight$")


def register_random_weights(spread: float) -> None:
    """Teach vLLM the load format ``random``.

    vLLM's own ``dummy`` leaves all top-k weights nearly equal, so that no threshold below 1 skips
    anything, and layers so weak that no token would show what was skipped. Here a layer's output
    is as large as its input, and router logits deviate by ``spread``.
    """

    @register_model_loader(RANDOM)
    class RandomLoader(BaseModelLoader):  # type: ignore[misc]
        def download_model(self, model_config: Any) -> None:
            """Nothing is read."""

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            for name, weight in model.named_parameters():
                draw(name, weight.data, spread)
            for module in model.modules():
                method: Any = getattr(module, "quant_method", None)
                if hasattr(method, "made_up"):
                    method.made_up = True  # packed experts wait for no file


def draw(name: str, weight: torch.Tensor, spread: float) -> None:
    """Fill a parameter in place; the same name and shape give the same numbers."""
    if not weight.is_floating_point():  # masks of packed experts, which hold something already
        return
    if weight.dim() < 2:  # norms and scales
        weight.fill_(1.0)
        return
    deviation = float(weight.shape[-1] ** -0.5)
    if "embed_tokens" in name:
        deviation = 1.0
    elif _ROUTER.search(name):
        deviation *= spread
    random = torch.Generator(weight.device).manual_seed(zlib.crc32(name.encode()))
    weight.normal_(0.0, deviation, generator=random)


@dataclass
class Ear:
    """What the router of one layer was heard to choose."""

    router: Any
    choices: list[Choice] = field(default_factory=list)

    def listen(self, top_k: int) -> None:
        """Take down every call that Python makes; a replayed graph makes none."""
        stock: Callable[..., Any] = self.router.select_experts

        def select_experts(
            hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **named: Any
        ) -> Any:
            self.choices.append(Choice.of(router_logits, top_k))
            return stock(hidden_states, router_logits, *args, **named)

        self.router.select_experts = select_experts

    def stop(self) -> None:
        """The router as it was."""
        del self.router.select_experts


def routers_of(model: torch.nn.Module) -> Iterator[tuple[int, Any]]:
    """Each MoE layer's number and router, of stock and of ours."""
    for module in model.modules():
        found = _LAYER.search(f".{getattr(module, 'layer_name', '')}")
        if found and hasattr(module, "router") and hasattr(module, "routed_experts"):
            yield int(found[1]), module.router


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds(call: Callable[[], object], times: int) -> float:
    """Of one call, on average over many that the device is given at once."""
    call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    _synchronize()
    return (time.perf_counter() - start) / times


@contextmanager
def _not_waited_for() -> Iterator[None]:
    """Whoever waits for the GPU meanwhile fails with an error that says where."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Compilations:
    """Triton kernels compiled in this process since the start; ``None`` without Triton's hook."""

    def __init__(self) -> None:
        self.count: int | None = None
        try:
            from triton import knobs
        except ImportError:
            return
        self.count = 0
        knobs.runtime.jit_post_compile_hook = self._add

    def _add(self, *unused: Any, **named: Any) -> None:
        assert self.count is not None
        self.count += 1


class GpuArm(Arm):
    """An engine that can be profiled and listened to."""

    def __init__(
        self, model: str, engine: dict[str, Any], vocabulary: int, seed: int, spread: float
    ) -> None:
        register_random_weights(spread)
        super().__init__(model, engine, vocabulary, seed)
        self._ears: dict[int, Ear] = {}
        self._compilations = Compilations()

    def quiet_change(self, update: str) -> Answer:
        """Put a policy in force without waiting for the GPU; kernels compiled up to then."""
        with _not_waited_for():
            self._engine.collective_rpc("leanmoe_set_policy", args=(update,))
        return {"compiled": self._compilations.count}

    def listen(self, top_k: int) -> Answer:
        """Take down what every router chooses, until ``gates`` or ``recount``."""
        found: list[dict[int, Any]] = self._engine.apply_model(lambda m: dict(routers_of(m)))
        self._ears = {layer: Ear(router) for layer, router in found[0].items()}
        for ear in self._ears.values():
            ear.listen(top_k)
        return {"layers": len(self._ears)}

    def _heard(self) -> dict[int, list[Choice]]:
        for ear in self._ears.values():
            ear.stop()
        heard = {layer: ear.choices for layer, ear in self._ears.items()}
        self._ears = {}
        return heard

    def gates(self, shares: list[float]) -> Answer:
        """How far apart the weights of all layers' choices lay."""
        choices = [choice for layer in self._heard().values() for choice in layer]
        return gate_statistics(choices, tuple(shares)) if choices else {"tokens": 0}

    def recount(self, betas: dict[str, float]) -> Answer:
        """What each layer must have counted at its beta."""
        return {str(n): recount(heard, betas[str(n)]) for n, heard in self._heard().items()}

    def profile(self, what: str, **arguments: Any) -> Answer:
        """Kernels that the operation ``what`` launched: name, microseconds in all, launches."""
        on_device = torch.accelerator.is_available()
        kind = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
        with profile(activities=[kind]) as seen:
            getattr(self, what)(**arguments)
            _synchronize()
        events = [(e.key, e.self_device_time_total, e.count) for e in seen.key_averages()]
        return {"kernels": [event for event in events if event[1] > 0]}

    def bandwidth(self, size: int) -> Answer:
        """Bytes per second of the engine's device: a copy (read and written) and a sum (read)."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        source = torch.ones(size // 4, dtype=torch.float32, device=device)
        target, total = torch.empty_like(source), torch.empty((), device=device)
        copied = _seconds(lambda: target.copy_(source), 20)
        read = _seconds(lambda: torch.sum(source, dim=0, out=total), 20)
        return {"device": device.type, "copy": 2 * size / copied, "read": size / read}
