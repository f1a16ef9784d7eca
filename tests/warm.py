"""A process that imported vLLM once and forks for each snippet: imports take most of a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from leanmoe.process.environment import engine_environment


class Warm:
    """Runs code as ``python -c`` would, without the imports."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, code: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """What ``code`` printed and how it ended, in a fork of its own with that environment."""
        out, err = self._folder / "out", self._folder / "err"
        asked = {"code": code, "env": dict(environment), "out": str(out), "err": str(err)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        returned = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(code, returned, out.read_text(), err.read_text())


@contextmanager
def warm(folder: Path) -> Iterator[Warm]:
    """Started, and ended with its input."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        env=engine_environment(plugin=False),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Warm(process, folder)


def _become(asked: dict[str, str]) -> NoReturn:
    for path, descriptor in ((asked["out"], 1), (asked["err"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    code = 0
    try:
        exec(asked["code"], {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints while it is imported is no answer
    import vllm.model_executor.layers.fused_moe.layer
    import vllm.v1.worker.gpu_model_runner  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


if __name__ == "__main__":
    _serve()
