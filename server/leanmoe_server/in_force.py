"""What applies to requests now, as one API process knows it."""

from __future__ import annotations

from leanmoe.messages import PolicyUpdate
from leanmoe.policy import RequestLevel, hundredths_of
from leanmoe_server.level_span import LevelSpans
from leanmoe_server.settings import ServeSettings


class InForce:
    """The policy that workers apply, and the level of requests that name none.

    ``current`` is ``None`` before the first; ``governed`` is the governor's level on top of it,
    ``None`` where there is none. ``spans`` follow it through answers that are being made.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.current: PolicyUpdate | None = None
        self.governed: float | None = None
        self.spans = LevelSpans()
        # Unknown to clients, so that none can ask a worker past the cap.
        self.request_key = settings.request_key

    @property
    def default_level(self) -> RequestLevel | None:
        """The level of requests that name none, where it is not the engine's."""
        return None if self.governed is None else RequestLevel(hundredths_of(self.governed))
