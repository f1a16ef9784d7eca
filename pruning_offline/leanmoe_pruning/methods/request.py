"""What ``leanmoe prune`` is asked for, whatever the method: options that several methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.checkpoints.opening import check_uniform
from leanmoe_pruning.methods.selection import check_keep
from leanmoe_pruning.options import (
    compute_option,
    data_option,
    force_option,
    model_argument,
    option,
    out_option,
    window_option,
)

BudgetKind = Literal["uniform", "adaptive"]
# What --spread may name: a rule, or that the scores say which.
Asked = Literal["auto", "experts", "domains", "effects"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command but those that single methods add."""

    model: Path = model_argument()
    method: str | None = option("how to decide")
    keep: int | None = option("experts per layer", metavar="N")
    ratio: float | None = option("share of the experts to remove, instead of --keep", metavar="R")
    # Of methods that rank experts; others refuse them.
    budget: BudgetKind | None = option(
        "as many experts in every layer (default), or more where losing them costs more: "
        "--keep is then the mean",
        choices=get_args(BudgetKind),
    )
    total_bytes: str | None = option(
        "with --budget adaptive: weights the output may have, such as 40GiB, instead of --keep",
        metavar="SIZE",
    )
    spread: Asked | None = option(
        "choose all layers together: every expert number kept in about equally many layers "
        "(experts), no calibration domain losing more than its share (domains), or, with naee, "
        "whatever together moves the model's own predictions, or the text's log loss, least "
        "(effects, of a bundle by score --effects); without a word the scores say which",
        nargs="?",
        const="auto",
        choices=get_args(Asked),
    )
    plan: Path | None = option("a JSON file that says it for each layer instead", metavar="PLAN")
    scores: Path | None = option("a bundle to decide from", metavar="SCORES")
    variant: str | None = option("which form of the method", metavar="NAME")
    data: str | None = data_option(required=False)
    window: int = window_option()
    dump: Path | None = option("write what was decided on", metavar="DIR")
    compute: str | None = compute_option()
    plan_only: bool = option(
        "write the decision to OUT as a plan that can be edited and cut later, nothing else",
        default=False,
    )
    compress: bool = option(
        "store the experts packed, without their zeros; loads in `leanmoe serve` only",
        default=False,
    )
    replace: str = option(
        "what is put in the place of each removed expert, its router row kept: none (default), "
        "constant (one vector), or lowrank:R (a map of rank R beside it); fitted on --data, "
        "which may stand beside --scores then; a map loads in `leanmoe serve` only",
        default="none",
        metavar="HOW",
    )
    out: Path = out_option("lean checkpoint directory to write, or plan file with --plan-only")
    force: bool = force_option()
    seed: int = 0

    @property
    def adaptive(self) -> bool:
        """Whether layers may keep differently many experts."""
        return self.budget == "adaptive"

    def variant_of(self, variants: Sequence[str]) -> str:
        """``--variant``, the first of a method's where it is not given."""
        if self.variant is None:
            return variants[0]
        if self.variant not in variants:
            raise InputError(
                f"--method {self.method} has no variant {self.variant!r}; give "
                f"{' or '.join(variants)}"
            )
        return self.variant

    def experts_to_keep(self, checkpoint: Checkpoint) -> int:
        """``--keep``, or what ``--ratio`` leaves, per layer; raise where no router serves it."""
        check_uniform(checkpoint)
        if (self.keep is None) == (self.ratio is None):
            given = "both were given" if self.keep is not None else "neither was given"
            raise InputError(
                f"--method {self.method} takes --keep N or --ratio R and {given}; give one"
            )
        shape = checkpoint.shape
        if self.ratio is None:
            assert self.keep is not None, "one of them was given"
            check_keep(self.keep, shape, str(checkpoint.path))
            return self.keep
        return self._left(self.ratio, shape, str(checkpoint.path))

    @staticmethod
    def _left(ratio: float, shape: MoEShape, where: str) -> int:
        """What a checked ``--ratio`` leaves."""
        if not 0 <= ratio < 1:
            raise InputError(f"--ratio is {ratio}, expected the share to remove, from 0 to below 1")
        keep = round(shape.n_routed_experts * (1 - ratio))
        said = f"--ratio {ratio} keeps {keep} of {shape.n_routed_experts} experts per layer, which"
        check_keep(keep, shape, where, said)
        return keep
