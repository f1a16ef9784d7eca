"""A whole model written again, its experts packed or dense, nothing cut."""

from __future__ import annotations

import logging
from pathlib import Path

from leanmoe.command import Result
from leanmoe.files.output import atomic_directory
from leanmoe.manifest import write_manifest
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.packing import Packer
from leanmoe_pruning.cutting.record import cut_manifest
from leanmoe_pruning.progress import progress

_LOG = logging.getLogger(__name__)


def rewrite(
    model: OpenedModel, out: Path, force: bool, method: str, packer: Packer | None
) -> Result:
    """Write ``model`` to ``out``, packed by ``packer`` or dense without one; what it weighs."""
    settings = {} if packer is None else {"format": packer.how.text}
    with stop_on_signals():
        cutter = Cutter(model, {}, packer=packer)
        for note in cutter.size_notes:
            _LOG.warning("%s", note)
        with progress("checking shards", cutter.n_read) as tick:
            cutter.validate(tick)
        with atomic_directory(out, force) as directory:
            with progress("writing", cutter.n_written) as tick:
                files = cutter.write(directory, tick)
            manifest = cut_manifest(model, model.digests, method, settings, {}, None, files)
            # Its numbers are the same, packed and dense.
            curve = None if model.manifest is None else model.manifest.curve
            write_manifest(directory, manifest.model_copy(update={"curve": curve}))
    return {
        "out": str(out),
        **settings,
        "notes": list(cutter.size_notes),
        "weight_bytes": cutter.weight_bytes,
        "source_weight_bytes": model.reader.weight_bytes,
        "loads_in_stock_vllm": cutter.loads_in_stock,
    }


def show_rewritten(result: Result) -> str:
    """The result in a sentence."""
    share = result["weight_bytes"] / result["source_weight_bytes"]
    how = f"packed as {result['format']}" if "format" in result else "unpacked"
    where = "any engine" if result["loads_in_stock_vllm"] else "`leanmoe serve` only"
    return (
        f"{how}: {result['weight_bytes'] / 1e6:.0f} MB of weights, {share:.0%} of the source, in "
        f"{result['out']}; loads in {where}"
    )
