"""One ``leanmoe loadtest`` against a known server: its report, the truth, its CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import psutil

from leanmoe.errors import LeanMoEError
from leanmoe_bench.load.known_server import KnownServer, Pace, Served, known_server

PERCENTILES = (50, 90, 95, 99)
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Observed:
    """A run as the load test tells it (``reported``) and as the server does (``served``)."""

    reported: dict[str, Any]
    served: list[Served]
    client_cpu: float
    server_cpu: float

    def events_per_second(self) -> float:
        tokens = sum(len(one.sent) for one in self.served)
        return tokens / float(self.reported["measured_seconds"])

    def recorded(self) -> dict[str, dict[str, float]]:
        """Percentiles in milliseconds by the server's own timestamps."""
        return {
            "ttft_ms": _percentiles([s.sent[0] - s.received for s in self.served]),
            "itl_ms": _percentiles([b - a for s in self.served for a, b in pairwise(s.sent)]),
            "tpot_ms": _percentiles([_tpot(s) for s in self.served if len(s.sent) > 1]),
            "e2e_ms": _percentiles([s.ended - s.received for s in self.served]),
        }


def _tpot(served: Served) -> float:
    return (served.ended - served.sent[0]) / (len(served.sent) - 1)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(seconds, p)) * 1e3 for p in PERCENTILES}


def observe(pace: Pace, seconds: float, arguments: Sequence[str]) -> Observed:
    """Run the load test for ``seconds`` and measure the CPU of both sides in its middle."""
    with known_server(pace) as server, tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", "leanmoe.cli", "loadtest", server.url, "--json"]
        command += ["--duration", str(seconds), *arguments]
        process = subprocess.Popen(command, stdout=out)
        try:
            client_cpu, server_cpu = _cpu_share(process, server, seconds)
            if process.wait() != 0:
                raise LeanMoEError("the load test failed, see the lines above")
        finally:
            process.terminate()
            process.wait()
        out.seek(0)
        return Observed(json.loads(out.read()), server.truth().served, client_cpu, server_cpu)


def _cpu_share(
    process: subprocess.Popen[bytes], server: KnownServer, seconds: float
) -> tuple[float, float]:
    """Cores that Locust's processes and the server take while requests flow.

    Both sleeps are the measurement: from when the load is steady until shortly before its end.
    """
    while process.poll() is None and not server.truth().payloads:
        time.sleep(0.2)
    time.sleep(_SETTLE_SECONDS)
    locust = psutil.Process(process.pid).children(recursive=True)
    before, start = _seconds(locust), time.monotonic()
    served = _seconds([psutil.Process(server.process.pid)])
    time.sleep(max(seconds - 3 * _SETTLE_SECONDS, 1.0))
    passed = time.monotonic() - start
    mine = (_seconds(locust) - before) / passed
    return mine, (_seconds([psutil.Process(server.process.pid)]) - served) / passed


def _seconds(processes: Sequence[psutil.Process]) -> float:
    return float(sum(sum(one.cpu_times()[:2]) for one in processes if one.is_running()))
