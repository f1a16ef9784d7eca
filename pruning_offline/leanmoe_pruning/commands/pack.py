"""``leanmoe pack``: the experts of a weight-sparse model stored packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanmoe.command import Result
from leanmoe.errors import InputError
from leanmoe.files.output import check_output
from leanmoe_pruning.checkpoints.opening import check_no_stand_ins, open_model
from leanmoe_pruning.cutting.packing import packer_of
from leanmoe_pruning.cutting.rewriting import rewrite, show_rewritten
from leanmoe_pruning.options import command_of, force_option, model_argument, option, out_option


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What ``leanmoe pack`` takes."""

    model: Path = model_argument()
    out: Path = out_option("directory for the packed checkpoint")
    force: bool = force_option()
    pattern: str | None = option(
        "of every M weights the N that are kept (16:32), or the share of zeros of a mask without a "
        "pattern (0.5); if not given, what the model was pruned by",
        metavar="N:M",
    )


def _run(options: PackOptions) -> Result:
    model = open_model(options.model)
    check_no_stand_ins(model, "`leanmoe pack`")
    check_output(options.out, options.force, [options.model])
    if model.packing is not None:
        raise InputError(f"{model.path} is packed already; `leanmoe unpack` makes it dense again")
    packer = packer_of(model, options.pattern)
    return rewrite(model, options.out, options.force, "pack", packer)


COMMAND = command_of(
    PackOptions,
    _run,
    name="pack",
    summary="Store the experts of a weight-sparse checkpoint packed, without their zeros.",
    example="leanmoe pack ./sparse -o ./packed",
    show=show_rewritten,
)
