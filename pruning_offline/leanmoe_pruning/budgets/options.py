"""``--budget``, ``--keep``, ``--ratio`` and ``--total-bytes``, read and checked."""

from __future__ import annotations

import argparse

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe_pruning.amounts import parse_bytes, show_bytes
from leanmoe_pruning.budgets.budget import Budget, allowed_counts
from leanmoe_pruning.checkpoints.opening import check_uniform
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.plan import LayerPlan
from leanmoe_pruning.methods.method import Inputs
from leanmoe_pruning.methods.options import experts_to_keep

BUDGETS = ("uniform", "adaptive")
_MARKER_BYTES = 8  # of the tensor that marks a layer with a count of its own


def add_budget(parser: argparse.ArgumentParser) -> None:
    """The options of methods that rank experts; others refuse them."""
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        help="as many experts in every layer (default), or more where losing them costs more: "
        "--keep is then the mean",
    )
    parser.add_argument(
        "--total-bytes",
        metavar="SIZE",
        help="with --budget adaptive: weights the output may have, such as 40GiB, instead of "
        "--keep",
    )


def budget_of(args: argparse.Namespace, inputs: Inputs) -> Budget:
    """The budget that was asked for; raise where the router cannot serve it."""
    shape = inputs.shape
    if args.total_bytes is None:
        budget = Budget.uniform(experts_to_keep(args, inputs), shape)
        return budget if args.budget != "adaptive" else Budget(None, budget.total)
    if args.budget != "adaptive":
        raise InputError("--total-bytes is shared out among layers; give --budget adaptive with it")
    if args.keep is not None or args.ratio is not None:
        raise InputError("--total-bytes and --keep or --ratio both say how much stays; drop one")
    check_uniform(inputs.checkpoint)
    return Budget(None, _affordable(inputs.checkpoint, args.total_bytes))


def _affordable(checkpoint: Checkpoint, size: str) -> int:
    """Experts over all layers that ``size`` has room for."""
    limit, shape = parse_bytes(size, "--total-bytes"), checkpoint.shape
    counts, layers = allowed_counts(shape), len(shape.moe_layers)
    whole, less = (_bytes_with(checkpoint, count) for count in (counts[-1], counts[0]))
    if len(counts) == 1:
        return counts[0] * layers
    each = (whole - less) // ((counts[-1] - counts[0]) * layers)
    fixed = less - each * counts[0] * layers + _MARKER_BYTES * layers
    if limit < fixed + each * counts[0] * layers:
        raise InputError(
            f"--total-bytes {size} is too small for {checkpoint.path}: with the {counts[0]} "
            f"experts per layer that its router needs it has {show_bytes(less)} of weights"
        )
    return min((limit - fixed) // each, counts[-1] * layers)


def _bytes_with(checkpoint: Checkpoint, count: int) -> int:
    shape = checkpoint.shape
    size, share = shape.n_routed_experts // shape.n_groups, count // shape.n_groups
    kept = [group * size + place for group in range(shape.n_groups) for place in range(share)]
    plan = LayerPlan(keep=tuple(kept))
    return Cutter(checkpoint, dict.fromkeys(shape.moe_layers, plan)).weight_bytes
