"""``leanmoe prune``: decide what goes, cut it out, write a lean checkpoint with its manifest."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from leanmoe.checkpoint import Checkpoint
from leanmoe.command import Command, Result
from leanmoe.errors import CheckpointError, InputError
from leanmoe.files.output import atomic_directory, atomic_write_json, check_output
from leanmoe.manifest import Manifest, write_manifest
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.budgets.options import add_budget
from leanmoe_pruning.checkpoints.opening import open_model, source_digests
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.commands.options import add_compute, add_data, add_model, add_output
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.plan_file import check_plan_target, plan_note, write_plan
from leanmoe_pruning.cutting.record import cut_manifest
from leanmoe_pruning.data import load_data
from leanmoe_pruning.methods import planned
from leanmoe_pruning.methods.method import Arguments, Chooser, Decision, Inputs, Method
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.bundle import ScoreBundle

_LOG = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    known = "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values())
    parser.add_argument("--method", choices=tuple(METHODS), help=f"how to decide. {known}")
    parser.add_argument("--keep", type=int, metavar="N", help="experts per layer")
    parser.add_argument(
        "--ratio", type=float, metavar="R", help="share of the experts to remove, instead of --keep"
    )
    add_budget(parser)
    parser.add_argument(
        "--plan", type=Path, metavar="PLAN", help="a JSON file that says it for each layer instead"
    )
    parser.add_argument("--scores", type=Path, metavar="SCORES", help="a bundle to decide from")
    with_variants = (method for method in METHODS.values() if method.variants)
    named = "; ".join(f"{m.name}: {', '.join(m.variants)}" for m in with_variants)
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help=f"which form of the method, the first if not given. {named}",
    )
    add_data(parser, required=False)
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write what was decided on")
    add_compute(parser)
    parser.add_argument(
        "--plan-only",
        action="store_true",
        help="write the decision to OUT as a plan that can be edited and cut later, nothing else",
    )
    add_output(parser, "lean checkpoint directory to write, or plan file with --plan-only")
    shared: dict[Arguments, list[str]] = {}
    for method in METHODS.values():
        if method.add_arguments is not None:
            shared.setdefault(method.add_arguments, []).append(method.name)
    for add_arguments, names in shared.items():
        add_arguments(parser.add_argument_group(f"--method {', '.join(names)}"))


def _method(args: argparse.Namespace) -> Method:
    if args.plan is None:
        if args.method is None:
            raise InputError("give --method and what it asks for, or --plan PLAN")
        method = METHODS[args.method]
        if args.variant is not None and not method.variants:
            raise InputError(f"--method {method.name} has no variants; leave --variant out")
        return method
    others = ("method", "variant", "keep", "ratio", "budget", "total_bytes", "scores", "data")
    for name in (*others, "dump", "compute"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise InputError(f"--plan says what is cut and --{option} was given too; drop one")
    return planned.METHOD


def _open(args: argparse.Namespace, method: Method) -> tuple[Inputs, Chooser]:
    """Refuse whatever can be refused before any work."""
    checkpoint = open_model(args.model)
    _check_method(args, method, checkpoint)
    _check_outputs(args)
    _check_inputs(args)
    data = None
    if args.data is not None:
        data = load_data(args.data, checkpoint, "calibration", window=args.window)
    source = source_digests(args.model)
    bundle = None
    if args.scores is not None:
        bundle = ScoreBundle(args.scores)
        bundle.check_model(checkpoint, source)
    inputs = Inputs(checkpoint, source, data, bundle, args.compute, args.seed)
    return inputs, method.open(args, inputs)


def _check_method(args: argparse.Namespace, method: Method, checkpoint: Checkpoint) -> None:
    """Raise where the method does not do what is asked of it, naming those that do."""
    _check_options(args, method)
    shared = args.budget == "adaptive" or args.total_bytes is not None
    if shared and not method.shares_budget:
        able = ", ".join(one.name for one in METHODS.values() if one.shares_budget)
        raise InputError(
            f"--method {method.name} does not share a budget out among layers; leave --budget and "
            f"--total-bytes out, or use one of {able}"
        )
    if checkpoint.layout.layers and not method.takes_mixed:
        able = ", ".join(one.name for one in METHODS.values() if one.takes_mixed)
        raise CheckpointError(
            f"{checkpoint.path} has layers that differ, and --method {method.name} takes models "
            f"whose layers are alike; take its source, cut it by --plan, or use one of {able}"
        )
    if args.plan_only and args.plan is not None:
        raise InputError("--plan is a plan already, which --plan-only would write; drop one")
    if args.plan_only and not method.plannable:
        raise InputError(
            f"--method {method.name} changes single weights, which no plan can say; leave "
            "--plan-only out"
        )


def _check_options(args: argparse.Namespace, method: Method) -> None:
    """Raise where an option of other methods was given: it would be passed over."""
    for other in METHODS.values():
        for name, default in _own_options(other).items():
            if getattr(args, name) != default and not _takes(method, name):
                able = ", ".join(one.name for one in METHODS.values() if _takes(one, name))
                raise InputError(
                    f"--{name.replace('_', '-')} is an option of --method {able}; leave it out"
                )


def _takes(method: Method, name: str) -> bool:
    return name in _own_options(method) or name in method.also_takes


def _own_options(method: Method) -> dict[str, Any]:
    """A method's own options and what they are where they are not given."""
    parser = argparse.ArgumentParser(add_help=False)
    if method.add_arguments is not None:
        method.add_arguments(parser.add_argument_group())
    return vars(parser.parse_args([]))


def _check_outputs(args: argparse.Namespace) -> None:
    inputs = [path for path in (args.model, args.plan, args.scores) if path is not None]
    if args.plan_only:
        check_plan_target(args.out, args.force, inputs)
    else:
        check_output(args.out, args.force, inputs)
    if args.dump is not None:
        check_output(args.dump, args.force, [*inputs, args.out])


def _check_inputs(args: argparse.Namespace) -> None:
    if args.data is not None and args.scores is not None:
        raise InputError("--scores and --data were both given; the bundle holds its data, drop one")
    if args.compute is not None and args.scores is not None:
        raise InputError(
            "--compute was given with --scores, whose statistics are computed already; drop one"
        )


@torch.inference_mode()
def _run(args: argparse.Namespace) -> Result:
    started = time.monotonic()
    method = _method(args)
    inputs, chooser = _open(args, method)
    with stop_on_signals():
        decision = _probed(inputs, chooser.decide(args.dump is not None))
        for note in decision.notes:
            _LOG.warning("%s", note)
        if args.plan_only:
            return _plan(args, method, inputs, chooser, decision)
        with decision.replaced or nullcontext():
            cutter = Cutter(inputs.checkpoint, decision.layers, decision.replaced)
            with progress("checking shards", cutter.n_tensors) as tick:
                cutter.validate(tick)
            # First: where the dump cannot be written, there is no checkpoint without it either.
            if args.dump is not None:
                _write_dump(args, decision)
            manifest = _write(args, method, inputs, chooser, decision, cutter)
        decision.finished()
    return {**_result(args, cutter, manifest), "seconds": round(time.monotonic() - started, 1)}


def _probed(inputs: Inputs, decision: Decision) -> Decision:
    """The decision with what the probe found of it, where experts were chosen from scores."""
    found = inputs.probe.of_cut(decision.layers)
    if found is None:
        return decision
    warning = found.warning()
    return replace(
        decision,
        notes=decision.notes if warning is None else (*decision.notes, warning),
        record={**decision.record, "redundancy": found.facts()},
    )


def _plan(
    args: argparse.Namespace,
    method: Method,
    inputs: Inputs,
    chooser: Chooser,
    decision: Decision,
) -> Result:
    settings, calibration = chooser.settings(), None
    if method.reads_data:
        settings, calibration = {**settings, "compute": inputs.computed_in}, inputs.calibration
    note = plan_note(inputs.checkpoint.path.resolve().name, method.name, settings, calibration)
    if args.dump is not None:
        _write_dump(args, decision)
    write_plan(args.out, decision.layers, note)
    decision.finished()
    return {
        "plan": str(args.out),
        "method": method.name,
        "note": note,
        "notes": list(decision.notes),
        "experts": {str(layer): plan.n_experts for layer, plan in decision.layers.items()},
    }


def _settings(
    method: Method, inputs: Inputs, chooser: Chooser, decision: Decision
) -> dict[str, Any]:
    settings = {**chooser.settings(), **decision.record}
    if method.reads_data:
        settings["compute"] = inputs.computed_in
    if decision.notes:
        settings["notes"] = list(decision.notes)
    return settings


def _write_dump(args: argparse.Namespace, decision: Decision) -> None:
    with atomic_directory(args.dump, args.force) as directory:
        write_tensors(directory / "results.safetensors", decision.tensors)
        atomic_write_json(directory / "results.json", decision.facts)


def _write(
    args: argparse.Namespace,
    method: Method,
    inputs: Inputs,
    chooser: Chooser,
    decision: Decision,
    cutter: Cutter,
) -> Manifest:
    settings = _settings(method, inputs, chooser, decision)
    with atomic_directory(args.out, args.force) as directory:
        with progress("writing", cutter.n_tensors) as tick:
            files = cutter.write(directory, tick)
        manifest = cut_manifest(
            inputs.checkpoint,
            inputs.source,
            method.name,
            settings,
            decision.layers,
            inputs.calibration if method.reads_data else None,
            files,
        )
        write_manifest(directory, manifest)
    return manifest


def _result(args: argparse.Namespace, cutter: Cutter, manifest: Manifest) -> Result:
    reader = cutter.reader
    return {
        "out": str(args.out),
        "method": manifest.method,
        "keep": args.keep,
        "notes": manifest.settings.get("notes", []),
        "zeros": manifest.settings.get("zeros"),
        "experts": {str(layer): own.n_experts for layer, own in cutter.layouts.items()},
        "condensed": [layer for layer, own in cutter.layouts.items() if own.condensed],
        "loads_in_stock_vllm": not cutter.has_layout,
        "n_routed_experts": cutter.checkpoint.shape.n_routed_experts,
        "kept": {str(layer): kept for layer, kept in manifest.kept.items()},
        "weight_bytes": cutter.weight_bytes,
        "source_weight_bytes": sum(reader.info(name).nbytes for name in reader.names),
        "manifest_digest": manifest.digest(),
    }


def _show(result: Result) -> str:
    if "plan" in result:
        return f"wrote what {result['method']} decided to {result['plan']}: cut it with --plan"
    share = result["weight_bytes"] / result["source_weight_bytes"]
    held = sorted(set(result["experts"].values()))
    counts = str(held[0]) if len(held) == 1 else f"{held[0]} to {held[-1]}"
    where = "any engine" if result["loads_in_stock_vllm"] else "`leanmoe serve` only"
    zeros = result["zeros"]
    zeroed = f"zeroed {sum(zeros.values()) / len(zeros):.1%} of expert weights, " if zeros else ""
    return (
        f"{zeroed}kept {counts} of {result['n_routed_experts']} experts per layer by "
        f"{result['method']} in {result['seconds']} s: {result['weight_bytes'] / 1e6:.0f} MB of "
        f"weights, {share:.0%} of the source, in {result['out']}; loads in {where}"
    )


COMMAND = Command(
    name="prune",
    help="Cut experts out of a Mixture-of-Experts checkpoint.",
    example="leanmoe prune ./reference --method naee --keep 5 --scores ./scores -o ./lean",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
