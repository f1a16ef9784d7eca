"""Runs a program that was built with sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_sanitized(program: Path) -> str:
    """What it printed; ``AssertionError`` with the sanitizer's finding where it failed.

    The sanitizer has to be the first of all libraries, and vLLM puts others into the environment.
    """
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    run = subprocess.run([str(program)], capture_output=True, text=True, env=clean)
    assert run.returncode == 0, run.stderr
    return run.stdout
