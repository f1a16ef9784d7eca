"""What a CPU's data-parallel ranks need of each other, where vLLM's CPU build has none.

Between router and experts a rank gathers all ranks' tokens, and after the experts each takes back
its own, summed over the ranks (``MoEPrepareAndFinalizeNaiveDPEPModular``). vLLM's communicator for
CPUs leaves both calls unimplemented. T tokens of each rank, as ``sizes`` says.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from leanmoe_runtime.compat import cpu_communicator_classes


def add_cpu_collectives() -> None:
    """Give vLLM's CPU communicator the calls it has not, once per process."""
    communicator, base = cpu_communicator_classes()
    for ours in (all_gatherv, reduce_scatterv):
        name = ours.__name__
        if getattr(communicator, name) is getattr(base, name):
            setattr(communicator, name, ours)


def all_gatherv(
    communicator: Any,
    input_: torch.Tensor | list[torch.Tensor],
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor | list[torch.Tensor]:
    """The rows of all ranks one after the other, for a tensor or for each of several."""
    _check_first(dim)
    if isinstance(input_, torch.Tensor):
        return _gathered(communicator, input_, sizes)
    return [_gathered(communicator, one, sizes) for one in input_]


def reduce_scatterv(
    communicator: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None
) -> torch.Tensor:
    """This rank's rows of the sum over all ranks, added up in float32."""
    _check_first(dim)
    total = input_.float() if input_.dtype.is_floating_point else input_.clone()
    total = total.clone() if total is input_ else total
    dist.all_reduce(total, group=communicator.device_group)
    rows = sizes or [len(total) // communicator.world_size] * communicator.world_size
    start = sum(rows[: communicator.rank_in_group])
    return total[start : start + rows[communicator.rank_in_group]].to(input_.dtype)


def _gathered(communicator: Any, rows_T: torch.Tensor, sizes: list[int] | None) -> torch.Tensor:
    counts = sizes or [len(rows_T)] * communicator.world_size
    most = max(counts)
    # The backend takes tensors of one size only.
    own = rows_T.new_zeros((most, *rows_T.shape[1:]))
    own[: len(rows_T)] = rows_T
    parts = [torch.empty_like(own) for _ in counts]
    dist.all_gather(parts, own, group=communicator.device_group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _check_first(dim: int) -> None:
    if dim != 0:
        raise ValueError(f"ranks' rows are gathered along dimension 0, not {dim}")
