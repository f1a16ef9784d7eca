"""What a budget is: the same number of experts in every layer, or a total to share out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe.families import MoEShape


@dataclass(frozen=True)
class Budget:
    """``keep`` experts in each layer, or, where that is ``None``, ``total`` in all layers."""

    keep: int | None
    total: int

    @classmethod
    def uniform(cls, keep: int, shape: MoEShape) -> Budget:
        return cls(keep, keep * len(shape.moe_layers))

    def settings(self) -> dict[str, Any]:
        """What the manifest records."""
        if self.keep is not None:
            return {"keep": self.keep}
        return {"budget": "adaptive", "experts_in_all": self.total}

    @property
    def name(self) -> str:
        """What a dump calls a run with it."""
        return f"r{self.keep}" if self.keep is not None else f"total{self.total}"


def allowed_counts(shape: MoEShape) -> list[int]:
    """Numbers of experts the router can serve, groups equally large, ascending."""
    return list(range(shape.least_keep, shape.n_routed_experts + 1, shape.n_groups))
