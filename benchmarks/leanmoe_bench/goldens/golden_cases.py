"""Which commands a golden set asks for, read off its own files, and which names they dump.

The layout is that of the sets' README (``docs/goldens.md``): one folder per method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

RESULTS, INPUTS = "results.safetensors", "inputs.safetensors"
_NAEE_RUN = re.compile(r"(layerwise|progressive)_r([0-9]+)(_.+)?")


@dataclass(frozen=True)
class Case:
    """One ``leanmoe prune``: its options, and its dump's name of each tensor of the set."""

    name: str
    folder: Path
    options: tuple[str, ...]
    tensors: dict[str, str] = field(hash=False)


def cases_of(directory: Path) -> Iterator[Case]:
    """Every case of every folder that is there."""
    readers: dict[str, Callable[[Path], Iterator[Case]]] = {
        "naee": _naee,
        "eep": _eep,
        "cdmoe": _cd_moe,
        "moe_pruner": _moe_pruner,
        "reap": _reap_models,
    }
    for name, reader in readers.items():
        if (directory / name).is_dir():
            yield from reader(directory / name)


def names(file: Path) -> list[str]:
    """The tensors of a safetensors file."""
    with safe_open(file, framework="np") as held:
        return list(held.keys())


def _json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def _calibration(folder: Path) -> tuple[str, str]:
    return "--data", f"{folder / INPUTS}:calib_input_ids"


def _naee(folder: Path) -> Iterator[Case]:
    held = set(names(folder / RESULTS))
    for run, facts in _json(folder).items():
        match = _NAEE_RUN.fullmatch(run)
        if match is None:
            continue
        variant, keep, other = match.groups()
        own = f"{variant}_r{keep}"
        wanted = {f"{run}.losses": f"{own}.losses", f"{run}.kept": f"{own}.kept"}
        for plain in (f"dropped_subsets.r{keep}", "betas.full", "ratio_mean.full"):
            wanted[plain] = plain
        if other is None:
            wanted |= {f"betas.{run}": f"betas.{own}", f"ratio_mean.{run}": f"ratio_mean.{own}"}
        options = ("--method", "naee", "--variant", variant, "--keep", keep)
        batch = ("--batch-size", str(facts["batch_split"][0]))
        shared = {name: mine for name, mine in wanted.items() if name in held}
        yield Case(f"naee {run}", folder, (*options, *batch, *_calibration(folder)), shared)


def _eep(folder: Path) -> Iterator[Case]:
    results, inputs = folder / RESULTS, folder / INPUTS
    for case, facts in _json(folder)["cases"].items():
        own = {name: name for name in names(results) if name.startswith(f"{case}.")}
        options = ("--method", "matrices", "--matrices", f"{results}:{case}")
        top_k = ("--top-k", str(facts["num_experts_per_tok"]))
        data = ("--data", f"{inputs}:probe_input_ids", "--block-input", f"{inputs}:block_input")
        yield Case(f"eep {case}", folder, (*options, *top_k, *data), own)


def _cd_moe(folder: Path) -> Iterator[Case]:
    inputs = folder / INPUTS
    documents = [name for name in names(inputs) if name.startswith("doc.")]
    documents.sort(key=lambda name: int(name.split(".")[1]))
    with safe_open(folder / RESULTS, framework="np") as held:
        layers, experts = held.get_slice("expert_order").get_shape()
    data = ",".join(f"{inputs}:{name}" for name in documents)
    options = ("--method", "cd-moe", "--layers", str(layers), "--experts", str(experts))
    probe = ("--probe", f"{inputs}:probe_input_ids")
    own = {name: name for name in names(folder / RESULTS) if not name.startswith("doc")}
    yield Case("cd-moe", folder, (*options, "--data", data, *probe), own)


def _moe_pruner(folder: Path) -> Iterator[Case]:
    patterns = {"unstructured50": ("--sparsity", "0.5"), "2of4": ("--pattern", "2:4")}
    tags = {name.split(".layer")[0] for name in names(folder / RESULTS) if ".layer" in name}
    for tag in sorted(tags):
        method, pattern, schedule = tag.split(".")
        own = {name: name for name in names(folder / RESULTS) if name.startswith(f"{tag}.layer")}
        options = ("--method", method.replace("_", "-"), *patterns[pattern])
        rest = ("--schedule", schedule, *_calibration(folder))
        yield Case(f"weights {tag}", folder, (*options, *rest), own)


def _reap_models(directory: Path) -> Iterator[Case]:
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        yield from _reap(folder)


def _reap(folder: Path) -> Iterator[Case]:
    found = names(folder / RESULTS)
    with safe_open(folder / RESULTS, framework="np") as held:
        experts = held.get_slice("renorm.reap").get_shape()[1]
    drops = sorted({int(name.rsplit("drop", 1)[1]) for name in found if ".kept." in name})
    statistics = [
        name for name in found if name.startswith(("renorm.", "raw.")) and ".kept." not in name
    ]
    for dropped in drops:
        kept = [name for name in found if ".kept." in name and name.endswith(f".drop{dropped}")]
        options = ("--method", "reap", "--keep", str(experts - dropped))
        own = {name: name for name in (*statistics, *kept)}
        name = f"reap {folder.name} drop{dropped}"
        yield Case(name, folder, (*options, *_calibration(folder)), own)
