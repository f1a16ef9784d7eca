"""What EEP searches over: per depth group a router-mapping and an expert-merging matrix.

G groups, E experts of the source, E' slots. A row is a slot: row j of both matrices speaks of
the same expert of the output, so rows keep their places through every operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanmoe.files.digest import bytes_digest


@dataclass(frozen=True)
class Individual:
    """Matrices of every group, float32 ``[G, E', E]``: W_EM and W_RM of the paper."""

    experts: torch.Tensor
    router: torch.Tensor
    # The order the released mutation visits matrices in: group by group, or after a crossover
    # all of ``experts`` first.
    interleaved: bool = True

    @property
    def n_groups(self) -> int:
        return len(self.experts)

    @property
    def n_slots(self) -> int:
        return self.experts.shape[1]

    @property
    def n_experts(self) -> int:
        return self.experts.shape[2]

    def copy(self, interleaved: bool = True) -> Individual:
        """The same numbers in memory of its own."""
        return Individual(self.experts.clone(), self.router.clone(), interleaved)

    def digest(self) -> str:
        """SHA-256 of the content; -0.0 counts as 0.0."""
        return bytes_digest((part + 0.0).numpy().tobytes() for part in (self.experts, self.router))

    @property
    def can_route(self) -> bool:
        """Whether every slot can be chosen: its router row has a positive entry."""
        return bool((self.router.amax(-1) > 0).all())

    @property
    def is_finite(self) -> bool:
        """Whether all entries are numbers: a row whose sum is zero has none once normed."""
        return all(bool(torch.isfinite(part).all()) for part in (self.experts, self.router))

    def prunes(self, group: int) -> tuple[int, ...] | None:
        """The experts kept where a group only selects, ascending; ``None`` where it mixes."""
        experts = self.experts[group]
        chosen = experts.argmax(-1)
        one_hot = torch.zeros_like(experts).scatter_(1, chosen[:, None], 1.0)
        same = torch.equal(experts, one_hot) and torch.equal(self.router[group], one_hot)
        kept = sorted(chosen.tolist())
        return tuple(kept) if same and len(set(kept)) == len(kept) else None


def identity(n_groups: int, n_experts: int) -> Individual:
    """The model as it is, in every group."""
    eye = torch.eye(n_experts).repeat(n_groups, 1, 1)
    return Individual(eye, eye.clone())


def group_of_layers(n_layers: int, n_groups: int) -> list[int]:
    """The depth group of each MoE layer: runs of neighbours, as equally long as can be."""
    return [place * n_groups // n_layers for place in range(n_layers)]
