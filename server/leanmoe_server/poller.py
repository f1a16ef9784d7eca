"""Reads the workers' counters and all processes' memory in the background and before a scrape."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import psutil

from leanmoe.messages import SkipSnapshot
from leanmoe_server.metrics import Metrics
from leanmoe_server.process_tree import ProcessTree
from leanmoe_server.pulse import PATIENCE_SECONDS, Pulse
from leanmoe_server.readiness import Readiness
from leanmoe_server.token_rates import TokenRates

logger = logging.getLogger(__name__)


class Poller:
    """One reading at a time, shared by everyone who asks meanwhile."""

    def __init__(
        self,
        snapshot: Callable[[], Awaitable[list[SkipSnapshot]]],
        metrics: Metrics,
        rates: TokenRates,
        seconds: float,
        *,
        pulse: Pulse,
        readiness: Readiness,
        tree: ProcessTree,
    ) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        self._rates = rates
        self._seconds = seconds
        self._pulse = pulse
        self._readiness = readiness
        self._tree = tree
        self._reading: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._failing = False
        self.latest: list[SkipSnapshot] = []
        self.after_reading: Callable[[], None] = lambda: None

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the counters were last read; ``None`` before the first reading."""
        age = self._metrics.snapshot_age()
        return round(age, 1) if age != float("inf") else None

    def start(self) -> None:
        """Poll until the event loop ends."""
        self._pulse.beat()
        self._loop = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        while True:
            await self.refresh(self._seconds / 2, PATIENCE_SECONDS)
            self._readiness.say_silence()
            await asyncio.sleep(self._seconds)

    async def refresh(
        self, max_age_seconds: float = 0.0, wait_seconds: float | None = None
    ) -> None:
        """Bring the metrics up to date; after ``wait_seconds`` the old values must do."""
        if self._metrics.snapshot_age() <= max_age_seconds:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
        # Not cancelled with the waiter: the reading may serve the next one.
        await asyncio.wait([self._reading], timeout=wait_seconds)

    async def _read(self) -> None:
        try:
            snapshots = await self._snapshot()
        except Exception as error:
            if not self._failing:
                logger.error("the workers' counters could not be read: %s", error)
            self._failing = True
            return
        self._failing = False
        self._pulse.beat()
        self.latest = snapshots
        self._metrics.observe_snapshots(snapshots)
        workers = {snapshot.pid: snapshot.worker for snapshot in snapshots}
        self._metrics.observe_memory(_resident_bytes(self._tree, workers))
        self._metrics.observe_rates(self._rates.read())
        self.after_reading()


def _label(process: psutil.Process, workers: Mapping[int, str]) -> str:
    if process.pid in workers:
        return workers[process.pid]
    title = " ".join(process.cmdline()[:1])
    return "engine_core" if "EngineCore" in title else "other"


def _resident_bytes(tree: ProcessTree, workers: Mapping[int, str]) -> dict[str, int]:
    """Bytes by process label; ``workers`` maps process ids to worker names.

    Processes that share a label are summed; one that ends meanwhile is left out.
    """
    sizes: Counter[str] = Counter()
    api = list(tree.api())
    labels = {**workers, **{process.pid: "api_server" for process in api}}
    for process in (*api, *tree.others()):
        try:
            sizes[_label(process, labels)] += process.memory_info().rss
        except psutil.Error:
            continue
    return dict(sizes)
