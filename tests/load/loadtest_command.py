"""Runs ``leanmoe loadtest`` as a user does, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

COMMAND = (sys.executable, "-m", "leanmoe.cli", "loadtest")


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, env=env
    )


def report(url: str, *arguments: str) -> dict[str, Any]:
    """What a run that succeeds prints with ``--json``."""
    done = run(url, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
