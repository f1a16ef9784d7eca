"""``leanmoe bench load``: are the load test's figures true, and how many events does it take?

Truth: percentiles it reports against those of the server's own timestamps. Capacity: how much it
adds to the server's p99 gap between tokens as the events per second rise.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_bench.load.known_server import Pace
from leanmoe_bench.load.loadtest_run import PERCENTILES, observe
from leanmoe_bench.machine import environment

MOST_OFF_MS, MOST_ADDED_MS = 2.0, 5.0
_TRUTH_SECONDS, _CAPACITY_SECONDS = 20.0, 12.0
# Seven values each, so that no percentile falls between two of them.
_VARIED = Pace(
    ttft_ms=[60.0, 90.0, 130.0, 180.0, 240.0, 310.0, 450.0],
    itl_ms=[8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 70.0],
    tokens=40,
)
_TRUTH = {
    "open loop, 8 requests/s": ["--arrivals", "poisson:8"],
    "closed loop, 8 users": ["--users", "8"],
    "open loop, 8 requests/s, 2 workers": ["--arrivals", "poisson:8", "--processes", "2"],
}
_GAP_MS = 20.0
_USERS = (10, 20, 40, 80, 160, 320)


@dataclass(frozen=True)
class Capacity:
    """How one process bears a number of events per second."""

    users: int
    processes: int
    events_per_second: float
    client_cores: float
    server_cores: float
    server_itl_p99_ms: float
    client_itl_p99_ms: float

    @property
    def added_ms(self) -> float:
        return self.client_itl_p99_ms - self.server_itl_p99_ms


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def _run(args: argparse.Namespace) -> Result:
    with stop_on_signals():
        return {"environment": environment(), "load": _measure(args.seed)}


def _measure(seed: int) -> dict[str, Any]:
    """Truth and capacity, and what they depend on."""
    before = os.getloadavg()[0]
    truth = [_truth(name, arguments, seed) for name, arguments in _TRUTH.items()]
    runs = [_capacity(users, 1, seed) for users in _USERS] + [_capacity(_USERS[2], 2, seed)]
    return {
        "scheduling": _scheduling(),
        "load_average_before": before,
        "truth": truth,
        "capacity": [{**asdict(one), "added_ms": one.added_ms} for one in runs],
    }


def _scheduling() -> str:
    policies = {os.SCHED_OTHER: "ordinary", os.SCHED_RR: "real time", os.SCHED_FIFO: "real time"}
    return policies.get(os.sched_getscheduler(0), "other")


def _truth(name: str, arguments: list[str], seed: int) -> dict[str, Any]:
    seen = observe(_VARIED, _TRUTH_SECONDS, [*arguments, "--seed", str(seed)])
    rows = {
        latency: {
            p: {"server": at[p], "reported": seen.reported[latency][p]}
            for p in (f"p{p}" for p in PERCENTILES)
        }
        for latency, at in seen.recorded().items()
    }
    off = max(abs(r["reported"] - r["server"]) for row in rows.values() for r in row.values())
    return {"load": name, "requests": len(seen.served), "most_off_ms": off, "latencies": rows}


def _capacity(users: int, processes: int, seed: int) -> Capacity:
    pace = Pace(ttft_ms=[50.0], itl_ms=[_GAP_MS], tokens=200)
    crew = ["--processes", str(processes)]
    seen = observe(pace, _CAPACITY_SECONDS, ["--users", str(users), *crew, "--seed", str(seed)])
    return Capacity(
        users=users,
        processes=processes,
        events_per_second=seen.events_per_second(),
        client_cores=seen.client_cpu,
        server_cores=seen.server_cpu,
        server_itl_p99_ms=seen.recorded()["itl_ms"]["p99"],
        client_itl_p99_ms=float(seen.reported["itl_ms"]["p99"]),
    )


def _show(result: Result) -> str:
    """Two tables."""
    found = result["load"]
    lines = [f"scheduling: {found['scheduling']}, load {found['load_average_before']:.1f}", ""]
    lines.append(
        f"{'reported - server, ms':36}{'':6}" + "".join(f"{f'p{p}':>8}" for p in PERCENTILES)
    )
    for truth in found["truth"]:
        for latency, row in truth["latencies"].items():
            cells = [row[f"p{p}"]["reported"] - row[f"p{p}"]["server"] for p in PERCENTILES]
            head = f"{truth['load']:36}{latency.removesuffix('_ms'):6}"
            lines.append(head + "".join(f"{cell:>+8.2f}" for cell in cells))
    lines += ["", f"{'events/s':>9}{'processes':>11}{'cores':>8}{'server p99':>12}{'added ms':>10}"]
    lines += [_capacity_line(row) for row in found["capacity"]]
    return "\n".join(lines)


def _capacity_line(row: dict[str, Any]) -> str:
    return (
        f"{row['events_per_second']:>9.0f}{row['processes']:>11}{row['client_cores']:>8.2f}"
        f"{row['server_itl_p99_ms']:>12.2f}{row['added_ms']:>+10.2f}"
    )


COMMAND = Command(
    name="bench load",
    help="Whether the load test's figures are true, and how many events per second it takes.",
    example="leanmoe bench load --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
