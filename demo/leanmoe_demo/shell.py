"""Runs ``leanmoe`` subcommands as a user would, one process each, and keeps what they print."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_demo.memory import Memory

_CLEAN_UP_SECONDS = 30.0


class Shell:
    """Runs subcommands and says on stderr what happens and how long it took."""

    def __init__(self, seed: int, memory: Memory) -> None:
        self._seed, self._memory = seed, memory
        self.seconds: dict[str, float] = {}

    def step(self, label: str, *arguments: str, makes: Path | None = None) -> dict[str, Any]:
        """``leanmoe`` once: a run that was cut short goes on behind its last finished step.

        ``makes`` is what the step leaves behind; without it there the step runs again.
        """
        key = [*arguments, "--seed", str(self._seed)]
        found = self._memory.recall(key, makes)
        if found is not None:
            print(f"  leanmoe {' '.join(arguments)}", file=sys.stderr, flush=True)
            print("    done before", file=sys.stderr, flush=True)
            self.seconds[label] = found["seconds"]
            return dict(found["result"])
        result = self.leanmoe(label, *arguments)
        self._memory.keep(key, {"seconds": self.seconds[label], "result": result})
        return result

    def leanmoe(self, label: str, *arguments: str) -> dict[str, Any]:
        """The object that ``leanmoe ARGUMENTS --json`` prints."""
        print(f"  leanmoe {' '.join(arguments)}", file=sys.stderr, flush=True)
        start = time.monotonic()
        code, output = _run([*arguments, "--json", "--seed", str(self._seed)])
        self.seconds[label] = round(time.monotonic() - start, 1)
        if code != 0:
            raise LeanMoEError(
                f"the demo stopped: `leanmoe {arguments[0]}` ended with code {code}; "
                "its own message stands above"
            )
        print(f"    {self.seconds[label]:.0f} s", file=sys.stderr, flush=True)
        return dict(json.loads(output))


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard output; an interrupted command is let clean up after itself."""
    command = [sys.executable, "-P", "-m", "leanmoe.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        try:
            process.wait(_CLEAN_UP_SECONDS)
        finally:
            process.kill()
        raise
    return process.returncode, output
