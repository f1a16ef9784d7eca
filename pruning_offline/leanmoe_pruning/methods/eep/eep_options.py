"""What ``--method eep`` and ``--method matrices`` read and check alike."""

from __future__ import annotations

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.checkpoints.fp8 import FP8
from leanmoe_pruning.checkpoints.opening import check_runnable, check_uniform
from leanmoe_pruning.cutting.carried_orders import check_summable
from leanmoe_pruning.methods.eep.merged_model import stored_dtype
from leanmoe_pruning.methods.method import Inputs
from leanmoe_pruning.methods.request import Request


def check_model(inputs: Inputs, method: str) -> None:
    """Raise unless the model's router is one whose probabilities a matrix can map."""
    check_runnable(inputs.checkpoint)
    check_uniform(inputs.checkpoint)
    if not inputs.checkpoint.family.transfers:
        raise InputError(
            f"--method {method} maps router probabilities and {inputs.checkpoint.family.name} has "
            "no plain softmax router; take another method"
        )


def refuse(request: Request, method: str, decides_by: str, *names: str) -> None:
    """Raise where an option was given that the method would pass over."""
    for name in names:
        if getattr(request, name) is not None:
            raise InputError(f"--method {method} decides by {decides_by}; leave --{name} out")


def top_k_of(given: int | None, inputs: Inputs, n_slots: int) -> int:
    """``--top-k``, or the model's own."""
    most = min(inputs.shape.top_k, n_slots)
    top_k = inputs.shape.top_k if given is None else given
    if not 1 <= top_k <= most:
        raise InputError(
            f"{top_k} active experts per token do not fit {n_slots} experts of a model that routes "
            f"to {inputs.shape.top_k}; give --top-k from 1 to {most}"
        )
    return top_k


def check_merging(inputs: Inputs) -> None:
    """Raise where sums of the model's experts would say nothing, or could not be written."""
    check_summable(inputs.checkpoint)
    _check_dtypes(inputs)


def _check_dtypes(inputs: Inputs) -> None:
    """Raise where merged weights could not be written, or would be judged in coarser numbers."""
    stored, compute = stored_dtype(inputs.checkpoint), inputs.stream().compute
    if stored == FP8.torch:
        raise InputError(
            f"{inputs.checkpoint.path} has float8 experts, whose sums would be rounded to 3 bits; "
            "restore the checkpoint to plain bf16 weights first"
        )
    if compute not in (torch.float32, stored):
        raise InputError(
            f"{inputs.checkpoint.path} is stored as {str(stored).removeprefix('torch.')}, and what "
            "is judged must be what is written; give --compute float32"
        )
