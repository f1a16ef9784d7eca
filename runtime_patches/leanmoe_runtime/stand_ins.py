"""Stand-ins for removed experts in a running layer: loaded beside the experts, added to their sum.

The router chooses among all experts, removed ones too. A kept expert's weights lie in the next free
row of vLLM's experts, which is what the kernel is given for its number; an assignment to a removed
one is left out of the kernel, and its stand-in times its weight is added in float32. What is not
there has weight 0 everywhere here: skipped assignments and those of other experts. All shapes
follow from those of the arguments and nothing waits for the device, so that graphs hold it.

T tokens, K top-k, E experts with the removed ones, S stand-ins, R rank, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from leanmoe.stand_ins import Part, stand_in_sizes

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_NOBODY = -1


class StandIns:
    """Those of one layer, ``ids`` ascending, of an engine's device."""

    def __init__(
        self,
        ids: tuple[int, ...],
        rank: int,
        n_experts: int,
        width: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.n_experts, self.width = n_experts, width
        self._ids, self._rank = ids, rank
        self._rows = [expert for expert in range(n_experts) if expert not in ids]
        rows = [self.row(expert) for expert in range(n_experts)]
        # A stand-in's place for removed experts, behind the last one for those that are there.
        places = [ids.index(e) if e in ids else len(ids) for e in range(n_experts)]
        self._row_E = torch.tensor(rows, dtype=torch.int32, device=device)
        self._place_E = torch.tensor(places, dtype=torch.int64, device=device)
        # NaN where the checkpoint has given nothing yet.
        self._parts: dict[Part, torch.Tensor] = {
            part: torch.full((len(ids), *size), torch.nan, dtype=dtype, device=device)
            for part, size in stand_in_sizes(width, rank).items()
        }

    def row(self, expert: int) -> int:
        """Where vLLM holds a kept expert's weights; -1 for one that was removed."""
        return _NOBODY if expert in self._ids else self._rows.index(expert)

    def holders(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """For each removed expert a module by its number, whose parameters lie in our tensors."""
        for place, expert in enumerate(self._ids):
            holder = torch.nn.Module()
            for part, held in self._parts.items():
                holder.register_parameter(
                    part, torch.nn.Parameter(held[place], requires_grad=False)
                )
            yield str(expert), holder

    def missing(self) -> list[int]:
        """Removed experts whose stand-in no checkpoint brought, as far as it was read."""
        wrong_S = torch.zeros(len(self._ids), dtype=torch.bool, device="cpu")
        for held in self._parts.values():
            wrong_S |= held.isnan().flatten(1).any(1).cpu()
        return [expert for expert, wrong in zip(self._ids, wrong_S.tolist(), strict=True) if wrong]

    def rows(self, ids_TK: torch.Tensor) -> torch.Tensor:
        """What the kernel is given for these experts; -1 for removed and for skipped ones."""
        row_TK = self._row_E[ids_TK.long().clamp(min=0)]
        return torch.where(ids_TK < 0, _NOBODY, row_TK).to(ids_TK.dtype)

    def output(
        self, x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor
    ) -> torch.Tensor:
        """The stand-ins' part of the layer's output, float32 ``[T, D]``."""
        share_TS = self._shares(weights_TK, ids_TK)
        output_TD = share_TS @ self._parts["approx_value"].float()
        if self._rank:
            into, out = (self._parts[part].float().flatten(0, 1) for part in _MAPS)
            inner_TP = x_TD.float() @ into.t()
            weighed_TP = inner_TP * share_TS.repeat_interleave(self._rank, dim=1)
            output_TD = output_TD + weighed_TP @ out
        return output_TD

    def _shares(self, weights_TK: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
        """The weight of each stand-in, float32 ``[T, S]``; all others fall into a last column."""
        last = len(self._ids)
        place_TK = self._place_E[ids_TK.long().clamp(min=0)]
        place_TK = torch.where(ids_TK < 0, last, place_TK)
        share = torch.zeros(
            len(ids_TK), last + 1, dtype=torch.float32, device=weights_TK.device
        ).scatter_add_(1, place_TK, weights_TK.float())
        return share[:, :last]


_MAPS: tuple[Part, Part] = ("approx_in", "approx_out")


def beside(stand_ins: StandIns, kernel: Kernel, adds: bool) -> Kernel:
    """A kernel on the host that takes the router's numbers of experts and adds stand-ins.

    Only pairs of tokens and experts that are there, with a weight, reach ``kernel``, one by one
    where some are not. ``adds`` is false on all but one of the ranks whose outputs are summed.
    """

    def run(x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
        row_TK = stand_ins.rows(ids_TK)
        token_N, slot_N = ((row_TK >= 0) & (weights_TK != 0)).nonzero(as_tuple=True)
        if len(token_N) == row_TK.numel():
            return kernel(x_TD, weights_TK, row_TK)
        output_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
        if adds:
            output_TD = stand_ins.output(x_TD, weights_TK, ids_TK)
        if len(token_N):
            pairs = (one[token_N, slot_N].unsqueeze(1).contiguous() for one in (weights_TK, row_TK))
            output_TD.index_add_(0, token_N, kernel(x_TD[token_N], *pairs).float())
        return output_TD.to(x_TD.dtype)

    return run


def taken(
    stand_ins: StandIns, weights: Iterable[tuple[str, torch.Tensor]], loaded: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What of a layer's tensors, by names within it, is not a stand-in's; those are loaded."""
    holders: dict[str, Any] = dict(stand_ins.holders())
    for name, tensor in weights:
        expert, _, part = name.partition(".")
        target = getattr(holders.get(expert), part, None)
        if target is None:
            yield name, tensor
            continue
        target.data.copy_(tensor)
        loaded.append(name)
