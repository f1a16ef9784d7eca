"""Memory for packed experts that are written out dense: one for all layers of an engine.

Layers run one after the other, so each may overwrite what the one before it wrote. It is allocated
while weights are loaded, never in a step: captured graphs keep its address.
"""

from __future__ import annotations

import torch


class Workspace:
    """Grows to what the layers ask for while they are loaded."""

    def __init__(self) -> None:
        self._held: torch.Tensor | None = None

    def reserve(self, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        """Be large enough for so many numbers."""
        if self._held is None or self._held.numel() < numbers:
            self._held = torch.empty(numbers, dtype=dtype, device=device)

    def views(self, *sizes: tuple[int, ...]) -> list[torch.Tensor]:
        """Tensors of these sizes, one behind the other."""
        assert self._held is not None, "reserved when weights were loaded"
        counts = [torch.Size(size).numel() for size in sizes]
        parts = torch.split(self._held[: sum(counts)], counts)
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]
