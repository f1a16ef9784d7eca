"""Which kernels a step launches and how long they take, stock's and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.measures import Measure, decode
from leanmoe_bench.gpu.deadline import Deadline
from leanmoe_bench.gpu.session import Row, Session
from leanmoe_bench.gpu.speed import steps_of

_BATCHES = (1, 8)
_TOKENS, _REHEARSED_TOKENS = 16, 4
_SHOWN = 16
_NAME_LENGTH = 90
_ONE_SECONDS = 6.0

Kernels = list[tuple[str, float, int]]


def profile(session: Session, deadline: Deadline) -> Iterator[Row]:
    """A row for stock and each case at two batch sizes, and one on the launches of level 0."""
    cases = (None, Case("level0"), session.model.skipping)
    tokens = _REHEARSED_TOKENS if session.settings.rehearses else _TOKENS
    for batch in _BATCHES:
        launches: dict[str, float] = {}
        for case in cases:
            deadline.need(_ONE_SECONDS, f"batch {batch}")
            row = _profiled(session, case, decode(batch, tokens, prompt=1))
            if row.get("status") == "not run":
                yield row
                return
            launches[row["case"]] = row["launches_per_step"]
            yield row
        yield _launches(session, batch, launches)


def _profiled(session: Session, case: Case | None, measure: Measure) -> Row:
    name = "stock" if case is None else case.name
    if case is not None:
        session.policy(case)
    plugin = case is not None
    seconds = measure.step.rows / session.run(plugin, measure, turn=1)
    kernels = session.kernels(plugin, measure, turn=1)
    if not kernels:
        return {"row": "profile", "status": "not run", "reason": "no GPU, no kernels to profile"}
    found = {"row": "profile", "case": name, "measure": measure.name}
    return found | summed(kernels, steps_of(measure), session.model.shape.layers, seconds)


def summed(kernels: Kernels, steps: int, layers: int, seconds: float) -> dict[str, Any]:
    """A profile per step; ``seconds`` is a step's time without the profiler."""
    total = sum(us for _, us, _ in kernels) / steps
    launches = sum(count for name, _, count in kernels if _is_launch(name)) / steps
    heaviest = sorted(kernels, key=lambda one: -one[1])[:_SHOWN]
    return {
        "us_per_step": round(seconds * 1e6, 1),
        "gpu_us_per_step": round(total, 1),
        "gpu_busy": round(total * 1e-6 / seconds, 3),
        "launches_per_step": round(launches, 2),
        "launches_per_layer": round(launches / layers, 2),
        "kernels": [
            {
                "name": name[:_NAME_LENGTH],
                "us_per_step": round(us / steps, 2),
                "launches_per_step": round(count / steps, 2),
                "launches_per_layer": round(count / steps / layers, 2),
            }
            for name, us, count in heaviest
        ],
    }


def _is_launch(name: str) -> bool:
    return not name.startswith(("Memcpy", "Memset"))


def _launches(session: Session, batch: int, per_step: dict[str, float]) -> Row:
    """Level 0 may launch no more than stock; the head and the sampling launch alike in both."""
    layers = session.model.shape.layers
    return {
        "row": "launches",
        "measure": f"decode_b{batch}",
        "case": "level0",
        "more_per_layer": round((per_step["level0"] - per_step["stock"]) / layers, 2),
        "target": 0,
        "met": per_step["level0"] <= per_step["stock"],
    }
