"""Packed experts on the GPU: their kernels checked, timed by themselves, and whole engines.

The module is also what the process runs that holds the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu import speed
from leanmoe_bench.gpu.deadline import Deadline, OutOfTime
from leanmoe_bench.gpu.session import Row, Session
from leanmoe_bench.gpu.targets import packed_target
from leanmoe_bench.gpu.trials import Trials
from leanmoe_bench.kernel.command import MIXTRAL, QWEN3, packed_rows
from leanmoe_bench.shapes import Shape

PATTERNS = ("16:32", "8:32", "2:4")
# Weight bytes of a model packed by half over its dense ones.
MOST_BYTES = 0.6
_SECONDS = 60.0


def check() -> Iterator[Row]:
    """Small layers of every pattern, in a process of its own; also of a check that is cut off."""
    about, found = {"row": "check", "check": "packed_kernels"}, Trials()
    try:
        found.collect(__name__)
    except OutOfTime:
        yield {**about, **found.told()}
        raise
    yield {**about, **found.told()}


def kernels(rounds: int, seed: int, deadline: Deadline) -> Iterator[Row]:
    """Both real shapes beside vLLM's Triton experts; a ratio above 1 is faster."""
    yield from check()
    for shape in (MIXTRAL, QWEN3):
        deadline.need(_SECONDS, f"the kernels of {shape.name}")
        yield from _of_shape(shape, rounds, seed)


def _of_shape(shape: Shape, rounds: int, seed: int) -> Iterator[Row]:
    """One shape's failure must not hide the other's times."""
    try:
        for row in packed_rows(shape, rounds, seed, list(PATTERNS), "cuda"):
            yield from _rows(row)
    except LeanMoEError as error:
        failed = {"status": "failed", "passed": False, "reason": str(error)}
        yield {"row": "check", "check": f"packed_times_{shape.name}", **failed}


def _rows(row: Row) -> Iterator[Row]:
    for pattern, found in row["packed"].items():
        wanted = packed_target(row["shape"], pattern, row["rows"])
        yield {
            "row": "packed_kernel",
            **{name: row[name] for name in ("shape", "rows", "dense_ms", "copy_gbs")},
            "pattern": pattern,
            **found,
            "way": row["ways"][pattern],
            "error": row["errors"][pattern],
            "target": wanted,
            "met": None if wanted is None else found["ratio"] >= wanted,
        }


def engines(session: Session, deadline: Deadline) -> Iterator[Row]:
    """Ours packed beside stock dense: bytes of weights, then tokens per second."""
    report = session.control.report
    share = report.weight_bytes / session.model.weight_bytes
    fits = share <= MOST_BYTES or not session.model.whole
    about = {"share": round(share, 3), "most": MOST_BYTES}
    yield {"row": "check", "check": "packed_weight_bytes", **about, "passed": fits}
    yield from speed.compare(session, session.model.packed_cases, deadline)


if __name__ == "__main__":
    from leanmoe_bench.gpu.packed_check import main

    main()
