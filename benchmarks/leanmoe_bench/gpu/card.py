"""What torch sees of the GPU, asked in a process of its own: this one is to hold none of it."""

from __future__ import annotations

import json
import subprocess
import sys

from leanmoe_bench.gpu.fit import Card

_ASK = """
import json, torch
if torch.cuda.is_available():
    found, (free, _) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
    print(json.dumps({
        "name": found.name, "memory_bytes": found.total_memory, "free_bytes": free,
        "capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda,
    }))
"""


def find_card() -> Card | None:
    """The first GPU, ``None`` where there is none to compute on."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    answer = done.stdout.strip()
    return Card(**json.loads(answer)) if done.returncode == 0 and answer else None
