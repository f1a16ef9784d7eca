"""An arm with any number of engines in its one process, addressed by name."""

from __future__ import annotations

from typing import Any

from leanmoe_bench.engines.arm_process import serve

Answer = dict[str, Any]


class Engines:
    """Each operation names the engine it is for; the first to name one starts it."""

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}

    def begin(self, name: str, **how: Any) -> Answer:
        # Whoever starts this process imports this module for its name, and no vLLM.
        from leanmoe_bench.engines.arm import Arm

        self._engines[name] = Arm(**how)
        return {"ready": True}

    def end(self, name: str) -> Answer:
        del self._engines[name]
        return {}

    def ask(self, name: str, what: str, **given: Any) -> Answer:
        answer: Answer = getattr(self._engines[name], what)(**given)
        return answer


if __name__ == "__main__":
    raise SystemExit(serve(Engines))
