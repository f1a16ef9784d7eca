"""What the numbers of a bench depend on besides the code."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from leanmoe.files.digest import tool_versions


def environment() -> dict[str, Any]:
    """The CPU, its cores and the versions of the tools."""
    cpu = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpu.read_text().splitlines() if cpu.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "tools": json.loads(json.dumps(tool_versions())),
    }
