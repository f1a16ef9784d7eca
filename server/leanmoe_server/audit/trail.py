"""The trail of a running server: the last changes in memory, all of them in a file if asked for."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from leanmoe_server.audit.entry import AuditEntry, Origin, PolicyRecord, utc_now
from leanmoe_server.audit.journal import Journal
from leanmoe_server.metrics import Metrics

logger = logging.getLogger(__name__)
KEPT = 1000


class AuditTrail:
    """Records changes one after the other; its owner calls ``record`` for one at a time.

    A line that cannot be written is kept in memory, logged and counted, and the change stands:
    an operator must be able to lower the level of a server whose disk is full.
    """

    def __init__(self, metrics: Metrics, file: Path | None = None) -> None:
        """``InputError`` where ``file`` cannot be appended to."""
        self._metrics = metrics
        self._journal = None if file is None else Journal(file)
        self._entries: deque[AuditEntry] = deque(maxlen=KEPT)
        self.recorded = 0

    @property
    def on_disk(self) -> bool:
        return self._journal is not None

    def latest(self, limit: int = KEPT) -> Sequence[AuditEntry]:
        """The last ``limit`` changes, the newest first."""
        return list(reversed(self._entries))[:limit]

    async def record(
        self,
        origin: Origin,
        before: PolicyRecord | None,
        after: PolicyRecord,
        version: int,
        error: str | None = None,
    ) -> AuditEntry:
        """Keep a change and write it down."""
        self.recorded += 1
        entry = AuditEntry(
            id=self.recorded,
            time=utc_now(),
            cause=origin.cause,
            who=origin.who,
            peer=origin.peer,
            before=before,
            after=after,
            reason=origin.reason,
            version=version,
            error=error,
        )
        self._entries.append(entry)
        self._metrics.observe_change(origin.cause, error is None)
        await self._write(entry)
        return entry

    async def _write(self, entry: AuditEntry) -> None:
        if self._journal is None:
            return
        try:
            # A disk may take its time; answers go on meanwhile.
            await asyncio.to_thread(self._journal.append, entry.as_json())
        except OSError as error:
            self._metrics.audit_failures.inc()
            logger.error("change %d could not be written to --audit-file: %s", entry.id, error)
