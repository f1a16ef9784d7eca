"""What requests take of the whole server: places and bytes, counted for each API process.

A process writes its own counts and reads everybody's: no lock, and a limit may be passed by as
many requests as there are other processes.
"""

from __future__ import annotations

from collections.abc import MutableSequence


class Occupancy:
    """``requests`` and ``held`` have one count for each API process; ``own`` is this one's."""

    def __init__(
        self, requests: MutableSequence[int], held: MutableSequence[int], own: int = 0
    ) -> None:
        self._requests, self._held, self._own = requests, held, own

    @classmethod
    def alone(cls) -> Occupancy:
        """Of the only process."""
        return cls([0], [0])

    @property
    def requests(self) -> int:
        """Requests that run or wait, in all processes."""
        return sum(self._requests)

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies under way."""
        return sum(self._held)

    def enter(self) -> None:
        """A request began here."""
        self._requests[self._own] += 1

    def leave(self) -> None:
        """The counterpart of ``enter``."""
        self._requests[self._own] -= 1

    def hold(self, size: int) -> None:
        """``size`` more bytes are held here; negative ones are let go."""
        self._held[self._own] += size
