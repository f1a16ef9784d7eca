"""``leanmoe reference OUT``: write the embedded reference MoE checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.interrupts import stop_on_signals
from leanmoe.provenance import atomic_directory, check_output
from leanmoe_pruning.progress import progress
from leanmoe_pruning.reference.build import (
    ReferenceModel,
    check_artefacts,
    check_written,
    write_reference,
)
from leanmoe_pruning.reference.gguf_base import GGUFBase, find_base


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write (1.4 GB)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    check_output(args.out, args.force)
    check_artefacts()
    model = ReferenceModel(GGUFBase(find_base()))
    with stop_on_signals(), atomic_directory(args.out, args.force) as directory:
        with progress("reference model", model.n_layers) as tick:
            write_reference(model, directory, tick)
        digest = check_written(directory)
    seconds = round(time.monotonic() - started, 1)
    return {"out": str(args.out), "tensors_digest": digest, "seconds": seconds}


def _show(result: Result) -> str:
    return f"reference MoE written to {result['out']} in {result['seconds']} s, digest verified"


COMMAND = Command(
    name="reference",
    help="Write the embedded reference MoE: a Mixtral of 692 M parameters, 8 experts, top-2.",
    example="leanmoe reference ./reference",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
