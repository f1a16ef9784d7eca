"""Two engines side by side: measured in turns, the idle one stopped meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe.process.group import ProcessGroup, last_lines
from leanmoe_bench.engines import arm_process

# What an engine with the plugin is told beside the flags that stock gets too.
WITH_PLUGIN: dict[str, Any] = {"additional_config": {"leanmoe": {"plugin": True}}}


def dotted_name(found: type) -> str:
    """By which another process imports a class: the worker extension of an engine."""
    return f"{found.__module__}.{found.__qualname__}"


class RemoteArm:
    """A handle on an arm's process and its engine's children.

    ``module`` is what runs in the process, ``settings`` are added to the environment it inherits.
    """

    def __init__(
        self,
        name: str,
        *,
        plugin: bool,
        log: Path,
        module: ModuleType = arm_process,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        read, write = os.pipe()
        with log.open("w") as out:
            self.group = ProcessGroup(
                [sys.executable, "-m", module.__name__, str(write)],
                env=engine_environment(plugin=plugin, base={**os.environ, **(settings or {})}),
                output=out,
                stdin=subprocess.PIPE,
                text=True,
                pass_fds=(write,),
            )
        os.close(write)
        self._answers = os.fdopen(read)

    def send(self, operation: str, **arguments: Any) -> None:
        commands = self.group.process.stdin
        assert commands is not None
        try:
            commands.write(json.dumps({"op": operation, **arguments}) + "\n")
            commands.flush()
        except BrokenPipeError:
            raise self._failed("the engine process ended") from None

    def answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        answer = json.loads(line) if line else {"error": "the engine process ended"}
        if "error" in answer:
            raise self._failed(answer["error"])
        return dict(answer)

    def _failed(self, error: str) -> LeanMoEError:
        return LeanMoEError(f"{self.name} engine failed: {error}\n{last_lines(self._log)}")

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        self.send(operation, **arguments)
        return self.answer()

    def close(self, grace_seconds: float = 30.0) -> None:
        """End the engine and every process it started; one that hangs gets ``grace_seconds``."""
        self.group.signal(signal.SIGCONT)
        assert self.group.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.group.process.stdin.close()
        self.group.end(grace_seconds=grace_seconds)
        self._answers.close()


class Pair:
    """Stock vLLM and ours on the same model with the same flags."""

    def __init__(self, stock: RemoteArm, ours: RemoteArm) -> None:
        self.stock, self.ours = stock, ours

    def alone(self, arm: RemoteArm, operation: str, **arguments: Any) -> dict[str, Any]:
        """Run one operation while the other engine is stopped."""
        other = self.ours if arm is self.stock else self.stock
        other.group.signal(signal.SIGSTOP)
        try:
            return arm.call(operation, **arguments)
        finally:
            other.group.signal(signal.SIGCONT)

    def ratios(
        self, operation: str, rounds: int, **arguments: Any
    ) -> tuple[list[float], list[float]]:
        """Interleaved throughputs (stock, ours); the order alternates, one warm-up is left out."""
        stock: list[float] = []
        ours: list[float] = []
        for turn in range(1 + rounds):
            order = [(self.stock, stock), (self.ours, ours)]
            for arm, values in order if turn % 2 else reversed(order):
                value = self.alone(arm, operation, turn=turn, **arguments)["tokens_per_second"]
                if turn:
                    values.append(value)
        return stock, ours


@contextmanager
def engine_pair(
    models: Mapping[str, Path],
    engine: dict[str, Any],
    vocabulary: int,
    seed: int,
    *,
    first: str = "stock",
) -> Iterator[Pair]:
    """Start both engines, each on its model of ``models``, ``first`` first.

    Both end whatever happens.
    """
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leanmoe-bench-")))
        arms: dict[str, RemoteArm] = {}
        for name in ("stock", "ours") if first == "stock" else ("ours", "stock"):
            plugin = name == "ours"
            arm = RemoteArm(name, plugin=plugin, log=logs / f"{name}.log")
            stack.callback(arm.close)
            extra = WITH_PLUGIN if plugin else {}
            arm.call(
                "start",
                model=str(models[name]),
                engine={**engine, **extra},
                vocabulary=vocabulary,
                seed=seed,
            )
            arms[name] = arm
        yield Pair(arms["stock"], arms["ours"])
