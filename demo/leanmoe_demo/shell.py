"""Runs ``leanmoe`` subcommands as a user would, one process each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from leanmoe.errors import LeanMoEError


class Shell:
    """Runs subcommands and says on stderr what happens and how long it took."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.seconds: dict[str, float] = {}

    def leanmoe(self, label: str, *arguments: str) -> dict[str, Any]:
        """The object that ``leanmoe ARGUMENTS --json`` prints."""
        print(f"  leanmoe {' '.join(arguments)}", file=sys.stderr, flush=True)
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "leanmoe.cli", *arguments, "--json", "--seed", str(self._seed)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.seconds[label] = round(time.monotonic() - start, 1)
        if done.returncode != 0:
            raise LeanMoEError(
                f"the demo stopped: `leanmoe {arguments[0]}` ended with code {done.returncode}; "
                "its own message stands above"
            )
        print(f"    {self.seconds[label]:.0f} s", file=sys.stderr, flush=True)
        return dict(json.loads(done.stdout))
