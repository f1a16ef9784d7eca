"""Stock and lean under the same load, in turns, the idle server stopped meanwhile."""

from __future__ import annotations

import signal
from statistics import median
from typing import Any

from leanmoe_demo.server import MODEL_NAME, Server
from leanmoe_demo.shell import Shell

ROUNDS = 3
USERS = 4
SECONDS = 12


def interleaved(shell: Shell, stock: Server, lean: Server) -> dict[str, Any]:
    """Output tokens per second of both, the ratio of each pair, and what lean skipped."""
    before = _assignments(lean)
    pairs = [_pair(shell, turn, stock, lean) for turn in range(ROUNDS)]
    routed, skipped = (b - a for a, b in zip(before, _assignments(lean), strict=True))
    ratios = sorted(pair["lean"] / pair["stock"] for pair in pairs)
    return {
        "users": USERS,
        "rounds": ROUNDS,
        "seconds_per_round": SECONDS,
        "stock_tokens_per_second": median(pair["stock"] for pair in pairs),
        "lean_tokens_per_second": median(pair["lean"] for pair in pairs),
        "ratio": median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "skip_rate": skipped / routed,
    }


def _pair(shell: Shell, turn: int, stock: Server, lean: Server) -> dict[str, float]:
    order = [(stock, lean), (lean, stock)]
    return {
        active.name: _alone(shell, f"load {turn + 1} {active.name}", active, idle)
        for active, idle in (order if turn % 2 == 0 else reversed(order))
    }


def _alone(shell: Shell, label: str, active: Server, idle: Server) -> float:
    idle.group.signal(signal.SIGSTOP)
    try:
        result = shell.leanmoe(
            label,
            *("loadtest", active.url, "--model", MODEL_NAME, "--ignore-eos"),
            *("--users", str(USERS), "--duration", str(SECONDS), "--max-tokens", "48"),
        )
    finally:
        idle.group.signal(signal.SIGCONT)
    return float(result["output_tokens_per_second"])


def _assignments(lean: Server) -> tuple[float, float]:
    return (
        lean.metric("leanmoe_routed_assignments_total"),
        lean.metric("leanmoe_skipped_assignments_total"),
    )
