"""The plugin's kernels against their references, on the GPU or under Triton's interpreter.

The module is also what the process runs that holds the kernels, the only one that loads them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def check(device: str) -> dict[str, Any]:
    """``passed``, ``cases`` and the names of those that ``failed``."""
    interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-m", __name__, device],
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


if __name__ == "__main__":
    from leanmoe_bench.gpu.selfcheck import main

    main()
