"""Runs a page's blocks one after the other, as a reader would: one folder, one Python session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docs.pages import Fence

# Against blocks that hang; a busy machine may take long over those that do not.
SECONDS = 600


@dataclass
class Session:
    """``path`` comes first on PATH; ``rewrites`` are applied to a block's text before it runs."""

    folder: Path
    path: Path | None = None
    rewrites: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, fence: Fence) -> None:
        """Raise ``AssertionError``, with the place and what was printed, where a block fails."""
        text = fence.text
        for old, new in self.rewrites.items():
            text = text.replace(old, new)
        if fence.language == "python":
            with chdir(self.folder):
                exec(compile(text, fence.where, "exec"), self.names)
        else:
            self._shell(fence, text)

    def _shell(self, fence: Fence, text: str) -> None:
        first = [str(self.path)] if self.path else []
        path = ":".join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as shell:
            try:
                printed, _ = shell.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(shell.pid, signal.SIGKILL)
                raise
        assert shell.returncode == 0, f"{fence.where} ended with {shell.returncode}:\n{printed}"
