"""A worker extension that keeps the router logits of every token, for an independent recount."""

from __future__ import annotations

from typing import Any

import torch


class LogitRecorder:
    """Mixed into vLLM's worker by ``worker_extension_cls``; eager mode only (hooks)."""

    def record_logits(self: Any) -> int:
        """Start recording; return the number of gates found."""
        self.recorded_logits: dict[int, list[torch.Tensor]] = {}
        gates = [
            (int(name.split("layers.")[1].split(".")[0]), module)
            for name, module in self.model_runner.get_model().named_modules()
            if name.endswith("block_sparse_moe.gate")
        ]
        for layer, gate in gates:
            gate.register_forward_hook(self._keep(layer))
        return len(gates)

    def _keep(self: Any, layer: int) -> Any:
        rows = self.recorded_logits.setdefault(layer, [])

        def hook(module: Any, inputs: Any, output: Any) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            rows.append(logits.detach().float().clone())

        return hook

    def take_logits(self: Any) -> dict[str, list[list[float]]]:
        """Everything recorded, [T, E] per layer, and start anew."""
        taken = {
            str(layer): torch.cat(rows).tolist() if rows else []
            for layer, rows in self.recorded_logits.items()
        }
        for rows in self.recorded_logits.values():
            rows.clear()
        return taken


class BlockRecorder:
    """Keeps what goes into every MoE block and what comes out; eager mode only."""

    def record_blocks(self: Any) -> list[int]:
        """Start recording; return the layers found."""
        self.recorded_blocks: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for name, module in self.model_runner.get_model().named_modules():
            if hasattr(module, "experts") and hasattr(module, "gate"):
                layer = int(name.split("layers.")[1].split(".")[0])
                module.register_forward_hook(self._keep_block(layer))
        return sorted(self.recorded_blocks)

    def _keep_block(self: Any, layer: int) -> Any:
        rows = self.recorded_blocks.setdefault(layer, [])

        def hook(module: Any, inputs: Any, output: Any) -> None:
            rows.append((inputs[0].detach().clone(), output.detach().clone()))

        return hook

    def take_blocks(self: Any) -> dict[str, Any]:
        """(Inputs [T, D], outputs [T, D]) per layer."""
        return {
            str(layer): [torch.cat(part).tolist() for part in zip(*rows, strict=True)]
            for layer, rows in self.recorded_blocks.items()
        }


class CompileCounter:
    """Says how much this worker has compiled."""

    def compiled(self: Any) -> int:
        """What Dynamo captured since the start; whatever it compiles raises it."""
        return sum(torch._dynamo.utils.counters["stats"].values())

    def compile_something(self: Any) -> None:
        """A function of its own, to show that the count rises."""
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
