"""The plugin's kernels against their references, on the GPU or under Triton's interpreter.

The module is also what the process runs that holds the kernels, the only one that loads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from leanmoe_bench.gpu.deadline import OutOfTime
from leanmoe_bench.gpu.trials import Trials
from leanmoe_bench.printed import Row


def check(device: str) -> Iterator[Row]:
    """One row: how many cases, which failed and why; also of a run that is cut off."""
    interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    on, found = "interpreter" if interpreted else device, Trials()
    try:
        found.collect(__name__, device, env={**os.environ, **interpreted})
    except OutOfTime:
        yield {"row": "kernels", "on": on, **found.told()}
        raise
    yield {"row": "kernels", "on": on, **found.told()}


if __name__ == "__main__":
    from leanmoe_bench.gpu.selfcheck import main

    main()
