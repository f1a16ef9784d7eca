"""What a reader of a run's figures ought to know before believing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LATE_MS = 50.0
_FOREIGN_SHARE = 0.05
_FEW = 100
_TOGETHER_SHARE = 0.1
_UNFINISHED_SHARE = 0.1


def notes(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that limits what the figures say."""
    return [
        *_of_requests(summary),
        *_of_the_sweep(summary),
        *_of_the_generator(summary),
        *_of_the_server(summary),
        *_of_quality(summary),
    ]


def _of_requests(summary: Mapping[str, Any]) -> Iterator[str]:
    counts = summary["requests"]
    total = sum(counts.values())
    if summary["partial"]:
        yield "The run was stopped before its time; the figures are those of the part that ran."
    if counts["completed"] and counts["completed"] < _FEW:
        yield (
            f"Only {counts['completed']} requests completed: percentiles above p90 rest on a few "
            "of them."
        )
    if total and counts["unfinished"] > _UNFINISHED_SHARE * total:
        yield (
            f"{counts['unfinished']} of {total} requests were cut off by the end of the run; "
            "latencies are those of the others, which leaves out the slowest."
        )
    if counts["completed"] and not summary["tokens_counted_by_server"]:
        yield "The server sent no usage for some answers: their tokens are pieces of text."


def _of_the_sweep(summary: Mapping[str, Any]) -> Iterator[str]:
    knee = (summary["sweep"] or {}).get("knee")
    if knee is not None and knee["above"]:
        yield (
            f"No knee was reached: at the highest rate, {knee['rate']:g} requests per second, time "
            "still grew more slowly than what got done. Try higher rates."
        )


def _of_the_generator(summary: Mapping[str, Any]) -> Iterator[str]:
    late = summary["late_ms"]
    if late is not None and late["p95"] > _LATE_MS:
        yield (
            f"The generator sent requests late (p95 {late['p95']:.0f} ms): the load was lower than "
            "asked for, and TTFT leaves out the wait. Use more workers or a lower rate."
        )
    together = summary["pieces_together"]
    if together is not None and together > _TOGETHER_SHARE:
        yield (
            f"{together:.0%} of the pieces of text arrived together with the one before: the "
            "server sends several at once, or the generator did not get the processor in time, "
            "and then TTFT and ITL are not the server's. Run it on cores or a machine of its own."
        )
    limit = summary["concurrency"]
    if limit is not None and limit["hits"]:
        yield (
            f"{limit['hits']} requests had to wait for one of {limit['limit']} places: from then "
            "on the load was no longer open."
        )


def _of_the_server(summary: Mapping[str, Any]) -> Iterator[str]:
    server = summary["server"]
    if server is None:
        yield "The server has no /metrics that the run could read: nothing is known of its inside."
        return
    made, seen = server["answer_tokens"], summary["output_tokens"]
    # Before the first reading and after the last one the server works unseen; more is another's.
    if made is not None and seen and made > (1 + _FOREIGN_SHARE) * _all_tokens(summary):
        yield (
            f"The server generated {made:.0f} tokens while this run received {seen}: others used "
            "it at the same time, or it went on with answers that had been cut off."
        )
    if server["level_changes"]:
        yield (
            f"The server's skip level changed {server['level_changes']:.0f} times during the run: "
            "see the time axis."
        )


def _all_tokens(summary: Mapping[str, Any]) -> float:
    counts = summary["requests"]
    unseen = counts["failed"] + counts["unfinished"]
    done = counts["completed"]
    return float(summary["output_tokens"]) * (done + unseen) / done if done else 0.0


def _of_quality(summary: Mapping[str, Any]) -> Iterator[str]:
    quality = summary["quality"]
    if quality is not None:
        yield from quality["notes"]
