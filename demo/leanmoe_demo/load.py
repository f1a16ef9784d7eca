"""The servers under the same load, in turns, the idle ones stopped meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from statistics import median
from typing import Any

from leanmoe_demo.server import MODEL_NAME, Server
from leanmoe_demo.shell import Shell

ROUNDS = 3
USERS = 4
SECONDS = 10
# A machine with other work takes minutes for an answer: that is slow, not wrong.
REQUEST_SECONDS = 1800


def interleaved(shell: Shell, servers: Sequence[Server]) -> dict[str, Any]:
    """Output tokens per second of each, by its name, and beside the first in the same round."""
    before = {server.name: _assignments(server) for server in servers[1:]}
    rounds = [_round(shell, turn, servers) for turn in range(ROUNDS)]
    found = {server.name: _speeds(server.name, servers[0].name, rounds) for server in servers}
    for server in servers[1:]:
        counted = zip(before[server.name], _assignments(server), strict=True)
        routed, skipped = (now - then for then, now in counted)
        found[server.name]["skip_rate"] = skipped / routed
    return {"users": USERS, "rounds": ROUNDS, "seconds_per_round": SECONDS, **found}


def _speeds(name: str, base: str, rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    speed = median(one[name] for one in rounds)
    if name == base:
        return {"tokens_per_second": speed}
    ratios = sorted(one[name] / one[base] for one in rounds)
    ends = {"ratio_low": ratios[0], "ratio_high": ratios[-1]}
    return {"tokens_per_second": speed, "ratio": median(ratios), **ends}


def _round(shell: Shell, turn: int, servers: Sequence[Server]) -> dict[str, float]:
    order = [*servers[turn:], *servers[:turn]]
    return {
        active.name: _alone(
            shell,
            f"load {turn + 1} {active.name}",
            active,
            [server for server in servers if server is not active],
        )
        for active in order
    }


def _alone(shell: Shell, label: str, active: Server, idle: Sequence[Server]) -> float:
    for server in idle:
        server.group.signal(signal.SIGSTOP)
    try:
        result = shell.leanmoe(
            label,
            *("loadtest", active.url, "--model", MODEL_NAME, "--ignore-eos"),
            *("--users", str(USERS), "--duration", str(SECONDS), "--max-tokens", "48"),
            *("--request-seconds", str(REQUEST_SECONDS)),
        )
    finally:
        for server in idle:
            server.group.signal(signal.SIGCONT)
    return float(result["output_tokens_per_second"])


def _assignments(lean: Server) -> tuple[float, float]:
    return (
        lean.metric("leanmoe_routed_assignments_total"),
        lean.metric("leanmoe_skipped_assignments_total"),
    )
