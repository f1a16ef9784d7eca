"""The device's kernels in a process of its own, under Triton's interpreter.

The interpreter is chosen when triton is imported, so it must not be in the tests' own process.
Tensors cross the pipe as safetensors bytes after one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import BinaryIO

import torch
from safetensors.torch import load, save

from leanmoe.messages import SkipMode

Tensors = dict[str, torch.Tensor]


def _send(pipe: BinaryIO, head: dict[str, object], tensors: Tensors) -> None:
    body = save(tensors)
    pipe.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body)
    pipe.flush()


def _receive(pipe: BinaryIO) -> tuple[dict, Tensors] | None:
    line = pipe.readline()
    if not line:
        return None
    head = json.loads(line)
    return head, load(pipe.read(head["bytes"]))


class KernelProcess:
    """Calls of one layer's kernels; the layer's table lives on until ``fresh`` is asked for."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.property.runtime.kernel_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )

    def call(
        self,
        weights: torch.Tensor,
        ids: torch.Tensor,
        betas: torch.Tensor,
        rows: torch.Tensor,
        *,
        experts: int,
        renormalize: bool,
        mode: SkipMode,
        fresh: bool = True,
        only: bool = False,
        factors: torch.Tensor | None = None,
    ) -> Tensors:
        """Weights, ids and the table's counts after the launch behind a router.

        ``only``: the model has this one MoE layer.
        """
        head = {"experts": experts, "renormalize": renormalize, "mode": mode}
        head |= {"fresh": fresh, "only": only}
        factors = torch.ones(experts) if factors is None else factors
        tensors = {"weights": weights, "ids": ids, "betas": betas, "rows": rows}
        return self._ask(head, {**tensors, "factors": factors})

    def route(self, logits: torch.Tensor, **routing: object) -> Tensors:
        """Weights and ids of the routing launch, nothing decided."""
        return self._ask({"routing": routing}, {"logits": logits})

    def _ask(self, head: dict[str, object], tensors: Tensors) -> Tensors:
        assert self._process.stdin and self._process.stdout
        _send(self._process.stdin, head, tensors)
        answer = _receive(self._process.stdout)
        assert answer is not None, "the kernel's process ended: see its error above"
        return answer[1]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


class _Layer:
    """One layer's table beside another's."""

    def __init__(self, betas: torch.Tensor, experts: int, *, only: bool) -> None:
        from leanmoe_runtime.device.table import DeviceTable

        self.table = DeviceTable.make(betas, experts, "cpu")
        self.other = self.table if only else DeviceTable.make(betas, experts, "cpu")

    def decide(self, head: dict, given: Tensors) -> Tensors:
        from leanmoe_runtime.device.launch import Step, decide

        self.table.push(given["betas"])
        self.table.push_factors(given["factors"])
        mode = SkipMode(head["mode"])
        # On top of what earlier layers counted.
        earlier = torch.arange(len(given["rows"]), dtype=torch.int32)
        skipped = earlier.clone()
        step = Step(given["rows"], skipped, self.table, self.other, head["renormalize"], mode)
        decide(given["weights"], given["ids"], step)
        counts = torch.tensor(self.table.read(), dtype=torch.float64)
        if self.other is not self.table:
            self._next_layer(head, given)
        found = {"weights": given["weights"], "ids": given["ids"], "counts": counts}
        return {**found, "skipped": skipped - earlier}

    def _next_layer(self, head: dict, given: Tensors) -> None:
        """A launch of the layer that runs next, on tokens that are nobody's."""
        from leanmoe_runtime.device.launch import Step, decide

        rows = torch.full((1,), -1, dtype=torch.int32)
        step = Step(
            rows,
            torch.zeros_like(rows),
            self.other,
            self.table,
            head["renormalize"],
            SkipMode(head["mode"]),
        )
        decide(given["weights"][:1].clone(), given["ids"][:1].clone(), step)


def _routed(head: dict, given: Tensors) -> Tensors:
    from leanmoe_runtime.device.launch import route
    from leanmoe_runtime.device.routing import Routing

    weights, ids = route(given["logits"], Routing(**head["routing"]), None)
    return {"weights": weights, "ids": ids}


def main() -> None:
    layer: _Layer | None = None
    while (asked := _receive(sys.stdin.buffer)) is not None:
        head, given = asked
        if "routing" in head:
            _send(sys.stdout.buffer, {}, _routed(head, given))
            continue
        if layer is None or head["fresh"]:
            layer = _Layer(given["betas"], head["experts"], only=head["only"])
        _send(sys.stdout.buffer, {}, layer.decide(head, given))


if __name__ == "__main__":
    main()
