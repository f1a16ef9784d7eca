"""What all layers of a step share on the device: each token's row, the budget, whose turn it is.

One buffer of rows serves all layers and every captured graph. It says "keep, do not count" (-1)
until a real step begins and again in every dummy run, so warm-up tokens and padding are no traffic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.messages import UnionBudget, UnionMode
from leanmoe_runtime.device.table import DeviceTable, on_device
from leanmoe_runtime.state import ENGINE_ROW
from leanmoe_runtime.tally import READ_BEHIND, Reading

NOBODY = -1
# Steps the host may run ahead of the device before it waits; vLLM schedules one or two ahead.
_RING = 4


class _Slot(NamedTuple):
    """Host memory of a copy, and the event after which that is done."""

    staged: torch.Tensor
    copied: Any

    def record(self) -> None:
        """The copy was queued on the stream."""
        if self.copied is not None:
            self.copied.record()

    def wait(self) -> NDArray[np.int32]:
        """The memory, once no copy is at work on it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.staged.numpy()


def _slot(size: int, device: torch.device) -> _Slot:
    on_host = device.type == "cpu"
    # vLLM builds models with the GPU as torch's default device, where nothing can be pinned.
    staged = torch.empty(size, dtype=torch.int32, device="cpu", pin_memory=not on_host)
    return _Slot(staged, None if on_host else torch.Event(device.type))


class Union:
    """The budget on distinct experts in force: ``values`` int32 [experts or 0, whether it moves].

    ``least`` is the smallest budget that may be set, 0 where none may: where as many experts fit
    all of a step's assignments, its graph holds no launch for a budget.
    """

    def __init__(self, least: int, device: torch.device | str) -> None:
        self.least = least
        with torch.inference_mode(False):
            self.values = torch.zeros(2, dtype=torch.int32, device=device)

    def set(self, union: UnionBudget | None) -> None:
        """Put a budget in force, or none; the next step of any captured graph sees it."""
        moves = union is not None and union.mode is UnionMode.REDIRECT
        experts = 0 if union is None else union.experts
        wanted = torch.tensor([experts, int(moves)], dtype=torch.int32, device="cpu")
        on_device(wanted, self.values)

    def may_bind(self, assignments: int) -> bool:
        """Whether so many assignments can exceed a budget that may be set."""
        return 0 < self.least < assignments


class _Read(NamedTuple):
    """The first so many numbers of a slot, on their way."""

    slot: _Slot
    tokens: int

    def wait(self) -> NDArray[np.int32]:
        return self.slot.wait()[: self.tokens]


class DeviceSkipped:
    """A device's ``SkippedTokens``: launches add to one buffer, read and emptied by steps."""

    def __init__(self, size: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.skipped_T = torch.zeros(size, dtype=torch.int32, device=device)
            self._ring = [_slot(size, device) for _ in range(READ_BEHIND + 1)]
        self._tokens = 0
        self._turn = 0

    def begin(self, tokens: int) -> None:
        """Every step that was counted has ended, which left zeros."""
        self._tokens = tokens

    def end(self) -> Reading:
        """Queue the copy to the host, behind the step on its stream."""
        slot = self._ring[self._turn]
        self._turn = (self._turn + 1) % len(self._ring)
        counted = self.skipped_T[: self._tokens]
        slot.staged[: self._tokens].copy_(counted, non_blocking=True)
        counted.zero_()
        slot.record()
        return _Read(slot, self._tokens)


class StepRows:
    """A persistent int32 ``rows_T`` of ``size`` tokens, set once per step.

    ``aligned`` is false where the router sees tokens in another order or of other ranks: then
    every token uses the engine's row, and padding is counted with the traffic. ``tables`` are the
    layers' in the order they run in, ``top_k`` is the largest among them.
    """

    def __init__(
        self,
        size: int,
        device: torch.device | str,
        *,
        aligned: bool = True,
        least_union: int = 0,
    ) -> None:
        device = torch.device(device)
        self.union = Union(least_union, device)
        self.tables: list[DeviceTable] = []
        self.top_k = 0
        # Written in steps, which are in inference mode, and before dummy runs, which are not yet.
        with torch.inference_mode(False):
            self.rows_T = torch.full((size,), NOBODY, dtype=torch.int32, device=device)
            self._ring = [_slot(size, device) for _ in range(_RING)]
        self.counted = DeviceSkipped(size, device)
        self.tokens = 0  # of the step that runs, 0 in a dummy run
        self.aligned = aligned
        self._held: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._turn = 0

    def earlier(self, table: DeviceTable) -> DeviceTable:
        """The table of the layer that ran before; of the last one, before the first."""
        return self.tables[self.tables.index(table) - 1]

    def begin(self, rows_T: torch.Tensor | None, tokens: int) -> None:
        """A real step of ``tokens``; ``rows_T`` lies on the host, ``None`` is the engine's row."""
        self.tokens = tokens
        if rows_T is None or not self.aligned:
            count = tokens if self.aligned else len(self.rows_T)
            wanted = np.full(count, ENGINE_ROW, dtype=np.int32)
        else:
            wanted = rows_T.numpy()
        self._hold(wanted)

    def reset(self) -> None:
        """A dummy run: nobody's tokens."""
        self.tokens = 0
        self._hold(np.empty(0, dtype=np.int32))

    def _hold(self, wanted: NDArray[np.int32]) -> None:
        """Bring ``wanted`` to the device, nobody's rows behind it; nothing where it is there."""
        if np.array_equal(wanted, self._held):
            return
        upto = max(len(wanted), len(self._held))
        slot = self._ring[self._turn]
        self._turn = (self._turn + 1) % _RING
        slot.wait()
        staged = slot.staged[:upto]
        staged[: len(wanted)] = torch.from_numpy(wanted)
        staged[len(wanted) :] = NOBODY
        self.rows_T[:upto].copy_(staged, non_blocking=True)
        slot.record()
        self._held = wanted.copy()
