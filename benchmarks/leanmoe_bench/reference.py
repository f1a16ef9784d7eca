"""The embedded reference model, and the commands that make things of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from leanmoe.errors import LeanMoEError


def leanmoe(*arguments: str) -> None:
    """Run a command as a user does, its output on stderr."""
    command = [sys.executable, "-m", "leanmoe.cli", *arguments]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise LeanMoEError(f"`leanmoe {' '.join(arguments)}` failed, see the lines above")


def reference_model(work: Path, name: str = "mixtral") -> Path:
    """A reference model in ``work``, written unless it is there."""
    model = work / ("reference" if name == "mixtral" else f"reference-{name}")
    if not (model / "config.json").exists():
        leanmoe("reference", str(model), "--model", name)
    return model
