"""``leanmoe unpack``: a packed model dense again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanmoe.command import Result
from leanmoe.errors import InputError
from leanmoe.files.output import check_output
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.cutting.rewriting import rewrite, show_rewritten
from leanmoe_pruning.options import command_of, force_option, model_argument, out_option


@dataclass(frozen=True, kw_only=True)
class UnpackOptions:
    """What ``leanmoe unpack`` takes."""

    model: Path = model_argument()
    out: Path = out_option("directory for the dense checkpoint")
    force: bool = force_option()


def _run(options: UnpackOptions) -> Result:
    model = open_model(options.model)
    check_output(options.out, options.force, [options.model])
    if model.packing is None:
        _ = model.reader  # which says where shards are packed all the same
        raise InputError(
            f"{model.path} is not packed: its config.json has no quantization_config of "
            "leanmoe_sparse; use it as it is"
        )
    return rewrite(model, options.out, options.force, "unpack", None)


COMMAND = command_of(
    UnpackOptions,
    _run,
    name="unpack",
    summary="Write a packed checkpoint dense again, for engines that do not know packed experts.",
    example="leanmoe unpack ./packed -o ./dense",
    show=show_rewritten,
)
