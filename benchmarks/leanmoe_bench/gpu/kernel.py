"""The decision's kernel against its reference, on the GPU or under Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

# Run by name in a process of its own: the parts do not import each other.
_MODULE = "leanmoe_runtime.device.selfcheck"


def check(device: str) -> dict[str, Any]:
    """``passed``, ``cases`` and the names of those that ``failed``."""
    interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, device],
        env={**os.environ, **interpreted},
        capture_output=True,
        text=True,
        check=False,
    )
    on = "interpreter" if interpreted else device
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"status": "failed", "on": on, "reason": lines[-1] if lines else "no output"}
    return {"status": "ran", "on": on, **json.loads(done.stdout.splitlines()[-1])}
