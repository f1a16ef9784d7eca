"""The device's kernel in a process of its own, under Triton's interpreter.

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
    """Calls of one layer's kernel; the layer's table lives on until ``fresh`` is asked for."""

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
    ) -> Tensors:
        """Weights, ids and the table's tensors after the call."""
        head = {"experts": experts, "renormalize": renormalize, "mode": mode, "fresh": fresh}
        tensors = {"weights": weights, "ids": ids, "betas": betas, "rows": rows}
        assert self._process.stdin and self._process.stdout
        _send(self._process.stdin, head, tensors)
        answer = _receive(self._process.stdout)
        assert answer is not None, "the kernel's process ended: see its error above"
        return answer[1]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


def main() -> None:
    from leanmoe_runtime.device.kernel import skip
    from leanmoe_runtime.device.table import DeviceTable

    table: DeviceTable | None = None
    while (asked := _receive(sys.stdin.buffer)) is not None:
        head, given = asked
        if table is None or head["fresh"]:
            table = DeviceTable.make(given["betas"], head["experts"], "cpu")
        table.push(given["betas"])
        skip(
            given["weights"],
            given["ids"],
            given["rows"],
            table,
            renormalize=head["renormalize"],
            mode=SkipMode(head["mode"]),
        )
        found = {"weights": given["weights"], "ids": given["ids"], "counts": table.counts}
        _send(sys.stdout.buffer, {}, {**found, "mass": table.mass, "clock": table.clock})


if __name__ == "__main__":
    main()
