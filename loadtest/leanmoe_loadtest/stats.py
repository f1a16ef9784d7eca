"""From records to the figures of a report: percentiles in milliseconds, throughput, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from leanmoe_loadtest.record import RequestRecord

PERCENTILES = (50, 90, 95, 99)
LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")


def distribution_ms(seconds: Sequence[float]) -> dict[str, float | int] | None:
    """Count, mean, percentiles and maximum in milliseconds; ``None`` when nothing was measured."""
    if not seconds:
        return None
    values = np.asarray(seconds) * 1e3
    points = np.percentile(values, PERCENTILES)
    return {
        "n": len(seconds),
        "mean": float(values.mean()),
        **{f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)},
        "max": float(values.max()),
    }


def present(values: Iterable[float | None]) -> list[float]:
    """The values that were measured."""
    return [value for value in values if value is not None]


def span_seconds(records: Sequence[RequestRecord]) -> float | None:
    """From the first request sent to the last one completed; ``None`` where none was."""
    ends = present(record.ended for record in records if record.completed)
    return max(ends) - min(record.sent for record in records) if ends else None


def summarise(records: Sequence[RequestRecord], span: float | None = None) -> dict[str, Any]:
    """The figures of a run, or of the part of one that lasted ``span`` seconds.

    Latencies and tokens are those of completed requests; failed and unfinished
    ones (cut off by the end of the run) are counted, never averaged in. Throughput
    covers the time from the first request sent to the last one completed.
    """
    done = [record for record in records if record.completed]
    failed = [record.error for record in records if record.error is not None]
    span = span_seconds(records) if span is None else span
    tokens = sum(record.output_tokens for record in done)
    ended = len(done) + len(failed)
    return {
        "requests": {
            "completed": len(done),
            "failed": len(failed),
            "unfinished": sum(record.unfinished for record in records),
        },
        "error_rate": len(failed) / ended if ended else None,
        "errors": dict(Counter(failed).most_common(10)),
        "measured_seconds": span,
        "prompt_tokens": sum(record.prompt_tokens or 0 for record in done),
        "output_tokens": tokens,
        "tokens_counted_by_server": all(r.completion_tokens is not None for r in done),
        "output_tokens_per_second": tokens / span if span else None,
        "requests_per_second": len(done) / span if span else None,
        "ttft_ms": distribution_ms(present(r.ttft_seconds for r in done)),
        "itl_ms": distribution_ms([gap for r in done for gap in r.itl_seconds]),
        "tpot_ms": distribution_ms(present(r.tpot_seconds for r in done)),
        "e2e_ms": distribution_ms(present(r.e2e_seconds for r in done)),
    }
