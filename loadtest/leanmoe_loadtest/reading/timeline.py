"""Client and server on one time axis: a run cut into equal windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmoe_loadtest.reading.server_series import Series, server_series
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.run import Run

WINDOWS = 60
_LEAST_SECONDS = 1.0
Floats = NDArray[np.float64]


def timeline(run: Run) -> dict[str, Any] | None:
    """Windows of equal length from the first request on; ``None`` where none was sent.

    ``seconds`` are the windows' middles. A value is absent (``None``) where a window
    held nothing to measure. Latencies stand at the moment they were over.
    """
    if not run.requests:
        return None
    start, end = _bounds(run)
    width = max((end - start) / WINDOWS, _LEAST_SECONDS)
    count = max(1, int(np.ceil((end - start) / width)))
    edges = (start + width * np.arange(count + 1)).astype(np.float64)
    server = server_series(run.metrics)
    return {
        "window_seconds": width,
        "started": start,
        "seconds": _listed(edges[:-1] + width / 2 - start),
        "client": _client(run.requests, edges, width),
        "server": {name: _means(series, edges) for name, series in server.items()},
    }


def _bounds(run: Run) -> tuple[float, float]:
    return min(record.sent for record in run.requests), last_seen(run.requests)


def last_seen(records: Sequence[RequestRecord]) -> float:
    """The last moment that any record speaks of."""
    return max(max([r.sent, *r.chunks, *([] if r.ended is None else [r.ended])]) for r in records)


def _client(records: Sequence[RequestRecord], edges: Floats, width: float) -> dict[str, Any]:
    done = [record for record in records if record.completed]
    first = [(r.chunks[0], 1e3 * r.ttft_seconds) for r in done if r.ttft_seconds is not None]
    gaps = [
        (at, 1e3 * gap) for r in done for at, gap in zip(r.chunks[1:], r.itl_seconds, strict=True)
    ]
    failed = [record.sent for record in records if record.error is not None]
    return {
        "requests_per_second": _listed(_count([r.sent for r in records], edges) / width),
        "in_flight": _in_flight(records, edges),
        "failed": _listed(_count(failed, edges)),
        "output_tokens_per_second": _listed(_tokens(done, edges) / width),
        "ttft_p50_ms": _percentiles(first, edges, 50),
        "ttft_p95_ms": _percentiles(first, edges, 95),
        "itl_p50_ms": _percentiles(gaps, edges, 50),
        "itl_p95_ms": _percentiles(gaps, edges, 95),
    }


def _count(times: Sequence[float], edges: Floats) -> Floats:
    return np.histogram(times, edges)[0].astype(np.float64)


def _tokens(done: Sequence[RequestRecord], edges: Floats) -> Floats:
    """Tokens by arrival; a request's are spread over its pieces of text."""
    times = [time for record in done for time in record.chunks]
    weights = [tokens for record in done for tokens in _by_piece(record)]
    return np.histogram(times, edges, weights=weights)[0].astype(np.float64)


def _by_piece(record: RequestRecord) -> list[float]:
    pieces = len(record.chunks)
    if record.chunk_tokens is not None and len(record.chunk_tokens) == pieces:
        return [float(tokens) for tokens in record.chunk_tokens]
    return [record.output_tokens / pieces] * pieces if pieces else []


def _in_flight(records: Sequence[RequestRecord], edges: Floats) -> list[float]:
    """Requests under way, on average over each window."""
    starts = np.asarray([record.sent for record in records])
    ends = np.asarray([_end(record, edges[-1]) for record in records])
    within = [
        np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None).sum() / (high - low)
        for low, high in pairwise(edges)
    ]
    return _listed(np.asarray(within))


def _end(record: RequestRecord, last: float) -> float:
    if record.ended is not None:
        return record.ended
    # A failed request ended some time after its last piece; one cut off, with the run.
    return last if record.unfinished else max([record.sent, *record.chunks])


def _percentiles(
    points: Sequence[tuple[float, float]], edges: Floats, p: int
) -> list[float | None]:
    if not points:
        return [None] * (len(edges) - 1)
    times, values = np.asarray(points).T
    return [
        float(np.percentile(values[chosen], p)) if chosen.any() else None
        for chosen in _windows(times, edges)
    ]


def _means(series: Series, edges: Floats) -> list[float | None]:
    values = np.asarray(series.values)
    windows = _windows(np.asarray(series.times), edges)
    return [float(values[chosen].mean()) if chosen.any() else None for chosen in windows]


def _windows(times: Floats, edges: Floats) -> list[NDArray[np.bool_]]:
    places = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, len(edges) - 2)
    inside = (times >= edges[0]) & (times <= edges[-1])
    return [inside & (places == window) for window in range(len(edges) - 1)]


def _listed(values: Floats) -> list[float]:
    return [float(value) for value in values]
