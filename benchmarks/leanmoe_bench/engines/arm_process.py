"""The process of an arm, driven line by line over pipes.

Reads one JSON command per line on stdin, answers one per line on the descriptor named in its first
argument, so that nothing an engine prints can mix in. The module is light: whoever starts the
process imports it for its name, and vLLM is imported in the process alone.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def serve(arm_class: Callable[..., Any]) -> int:
    """Do as told until stdin ends; the operation ``start`` makes the arm."""
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    arm: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        try:
            if operation == "start":
                # What ends with an engine is the process's, and must not end under the next one.
                arm = None
                gc.collect()
                arm = arm_class(**command)
                answer: dict[str, Any] = {"ready": True}
            else:
                answer = getattr(arm, operation)(**command)
        except Exception as error:
            traceback.print_exc()  # into the log, whose end is told with the error
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    from leanmoe_bench.engines.arm import Arm

    raise SystemExit(serve(Arm))
