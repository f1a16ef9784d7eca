"""Options that several methods share, read and checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from leanmoe.errors import InputError
from leanmoe_pruning.checkpoints.opening import check_uniform
from leanmoe_pruning.methods.method import Inputs
from leanmoe_pruning.methods.selection import check_keep


def variant_of(args: argparse.Namespace, variants: Sequence[str]) -> str:
    """``--variant``, the first of a method's where it is not given."""
    if args.variant is None:
        return variants[0]
    if args.variant not in variants:
        raise InputError(
            f"--method {args.method} has no variant {args.variant!r}; give {' or '.join(variants)}"
        )
    return str(args.variant)


def experts_to_keep(args: argparse.Namespace, inputs: Inputs) -> int:
    """``--keep``, or what ``--ratio`` leaves, per layer; raise where no router can serve it."""
    check_uniform(inputs.checkpoint)
    if (args.keep is None) == (args.ratio is None):
        given = "both were given" if args.keep is not None else "neither was given"
        raise InputError(
            f"--method {args.method} takes --keep N or --ratio R and {given}; give one"
        )
    keep = args.keep if args.keep is not None else _kept_of_ratio(args.ratio, inputs)
    check_keep(keep, inputs.shape, str(inputs.checkpoint.path))
    return int(keep)


def _kept_of_ratio(ratio: float, inputs: Inputs) -> int:
    if not 0 <= ratio < 1:
        raise InputError(f"--ratio is {ratio}, expected the share to remove, from 0 to below 1")
    return round(inputs.shape.n_routed_experts * (1 - ratio))
