"""Load generators in turns on one server, and what they report beside each other.

All get the same prompts, the same number of requests under way and answers of the same length.
What each reports is compared with ours, and where the server is vLLM with the server's own means
of the same run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from leanmoe.errors import InputError
from leanmoe_bench.load.known_server import Pace, known_server
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.tools import generators
from leanmoe_bench.tools.generators import FIGURES, STREAMS, TOKENS, Figures, Target, Tool

# Five values each, so that neither median nor p95 falls between two of them.
_PACE = Pace(
    ttft_ms=[200.0, 260.0, 320.0, 380.0, 600.0],
    itl_ms=[20.0, 28.0, 34.0, 40.0, 56.0],
    tokens=0,
    late_role=True,
)
# A real server is quicker than the known pace, and less steady.
_REQUESTS = {"known pace": 60, "given": 240}
# What vLLM measures of its requests by itself.
_OWN = {
    "ttft_mean": "vllm:time_to_first_token_seconds",
    "tpot_mean": "vllm:request_time_per_output_token_seconds",
    "e2e_mean": "vllm:e2e_request_latency_seconds",
}


def measure(work: Path, rounds: int, url: str | None, program: str | None) -> dict[str, Any]:
    """Rounds in which every tool has its turn, in another order each time."""
    tools: dict[str, Tool] = {"leanmoe": generators.leanmoe, "vllm": generators.vllm}
    program = program or shutil.which("guidellm")
    if program is not None:
        tools["guidellm"] = generators.guidellm(program)
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(known_server(_PACE)).url
            server = "known pace"
        else:
            url, server = url.rstrip("/").removesuffix("/v1"), "given"
        target = Target(url, _model(url), Path(tempfile.mkdtemp(dir=work)), _REQUESTS[server])
        seen: dict[str, list[Figures]] = {name: [] for name in tools}
        own: dict[str, list[Figures]] = {name: [] for name in tools}
        for turn in range(rounds):
            for name in _order(list(tools), turn):
                before = _own_sums(url)
                seen[name].append(tools[name](target))
                own[name].append(_own_means(before, _own_sums(url)))
    return {
        "server": server,
        "model": target.model,
        "streams": STREAMS,
        "requests": target.requests,
        "tokens": TOKENS,
        "rounds": rounds,
        "left_out": [] if program else ["guidellm"],
        "rows": [row for name in tools if name != "leanmoe" for row in _rows(seen, name)],
        "against_server": [row for name in tools for row in _own_rows(name, seen, own)],
    }


def _own_sums(url: str) -> dict[str, tuple[float, float]]:
    """vLLM's own latencies so far, in seconds, and of how many requests; none elsewhere."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    values: dict[str, float] = {}
    for sample in (line.rpartition(" ") for line in text.splitlines()):
        name = sample[0].partition("{")[0]
        if name.endswith(("_sum", "_count")):
            values[name] = values.get(name, 0.0) + float(sample[2])
    return {
        figure: (values[f"{name}_sum"], values[f"{name}_count"])
        for figure, name in _OWN.items()
        if f"{name}_sum" in values
    }


def _own_means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> Figures:
    """Means in milliseconds of the requests in between."""
    means = {"requests": 0.0}
    for figure, (seconds, count) in after.items():
        since = before.get(figure, (0.0, 0.0))
        if count > since[1]:
            means[figure] = 1e3 * (seconds - since[0]) / (count - since[1])
            means["requests"] = count - since[1]
    return means


def _own_rows(
    name: str, seen: Mapping[str, Sequence[Figures]], own: Mapping[str, Sequence[Figures]]
) -> list[dict[str, Any]]:
    """A tool's means beside the server's of the same run, which a drifting server leaves true."""
    rows = []
    for figure in _OWN:
        if not all(figure in means for means in own[name]):
            continue
        client = [figures[figure] for figures in seen[name]]
        server = [means[figure] for means in own[name]]
        rows.append(
            {
                "tool": name,
                "figure": figure,
                "requests": [int(means["requests"]) for means in own[name]],
                **_compared("client", client, "server", server),
            }
        )
    return rows


def _compared(
    name: str, values: Sequence[float], other: str, theirs: Sequence[float]
) -> dict[str, float]:
    """Both medians, and the ratio of the first to the second, paired by turn."""
    ratio = paired_ratio(values, theirs)
    ends = {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}
    medians = {name: round(median(values), 3), other: round(median(theirs), 3)}
    return {**medians, **{key: round(value, 4) for key, value in ends.items()}}


def _order(names: list[str], turn: int) -> list[str]:
    place = turn % len(names)
    return [*names[place:], *names[:place]]


def _model(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"--url {url}: no model there ({error})") from None


def _rows(seen: Mapping[str, Sequence[Figures]], other: str) -> list[dict[str, Any]]:
    rows = []
    for figure in FIGURES:
        if figure not in seen[other][0]:
            continue
        ours = [figures[figure] for figures in seen["leanmoe"]]
        theirs = [figures[figure] for figures in seen[other]]
        rows.append(
            {
                "tool": other,
                "figure": figure,
                **_compared("ours", ours, "theirs", theirs),
            }
        )
    return rows
