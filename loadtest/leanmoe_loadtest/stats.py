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
    """Count, mean and percentiles in milliseconds; ``None`` when nothing was measured."""
    if not seconds:
        return None
    values = np.asarray(seconds) * 1e3
    points = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {"n": len(seconds), "mean": float(values.mean()), **points}


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def summarise(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The report of a run.

    Latencies and tokens are those of completed requests; failed and unfinished
    ones (cut off by the end of the run) are counted, never averaged in. Throughput
    covers the time from the first request sent to the last one completed.
    """
    done = [record for record in records if record.completed]
    failed = [record.error for record in records if record.error is not None]
    ends = _present(record.ended for record in done)
    span = max(ends) - min(record.sent for record in records) if ends else None
    tokens = sum(record.output_tokens for record in done)
    return {
        "requests": {
            "completed": len(done),
            "failed": len(failed),
            "unfinished": sum(record.unfinished for record in records),
        },
        "errors": dict(Counter(failed).most_common(10)),
        "measured_seconds": span,
        "prompt_tokens": sum(record.prompt_tokens or 0 for record in done),
        "output_tokens": tokens,
        "tokens_counted_by_server": all(r.completion_tokens is not None for r in done),
        "output_tokens_per_second": tokens / span if span else None,
        "requests_per_second": len(done) / span if span else None,
        "ttft_ms": distribution_ms(_present(r.ttft_seconds for r in done)),
        "itl_ms": distribution_ms([gap for r in done for gap in r.itl_seconds]),
        "tpot_ms": distribution_ms(_present(r.tpot_seconds for r in done)),
        "e2e_ms": distribution_ms(_present(r.e2e_seconds for r in done)),
    }
