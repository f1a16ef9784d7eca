"""``leanmoe prune``: decide what goes, cut it out, write a lean checkpoint with its manifest."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leanmoe.command import Command, Result
from leanmoe.errors import CheckpointError, InputError, OutputError
from leanmoe.files.output import (
    atomic_directory,
    atomic_write_json,
    check_output,
    placed,
    unplaced_directory,
)
from leanmoe.files.resuming import kept_in
from leanmoe.files.scratch import discard
from leanmoe.manifest import Manifest, write_manifest
from leanmoe.process.interrupts import interrupt_requested, stop_on_signals
from leanmoe.sparse.sparse_format import pattern_of
from leanmoe_pruning.amounts import show_share
from leanmoe_pruning.checkpoints.opening import (
    OpenedModel,
    check_no_stand_ins,
    check_runnable,
    open_model,
    unpacked_note,
)
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.packing import Packer, is_separable, packer_of, told_pattern
from leanmoe_pruning.cutting.plan_file import check_plan_target, plan_note, write_plan
from leanmoe_pruning.cutting.record import cut_manifest
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.data import load_data
from leanmoe_pruning.methods import planned
from leanmoe_pruning.methods.method import Chooser, Decision, Inputs, Method
from leanmoe_pruning.methods.probing import probed
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.unreached import unreached_notes
from leanmoe_pruning.options import (
    add_options,
    adds_options,
    checked,
    flag,
    option,
    own_options,
    read_options,
)
from leanmoe_pruning.progress import progress
from leanmoe_pruning.replacing.fitting import fit_stand_ins
from leanmoe_pruning.replacing.replacement import CONSTANT, NONE, Replacement, removed_experts
from leanmoe_pruning.scores.bundle import ScoreBundle

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Request):
    """The command's own options, the methods told by name."""

    method: str | None = option(
        "how to decide. "
        + "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values()),
        choices=tuple(METHODS),
    )
    variant: str | None = option(
        "which form of the method, the first if not given. "
        + "; ".join(f"{m.name}: {', '.join(m.variants)}" for m in METHODS.values() if m.variants),
        metavar="NAME",
    )
    super_experts: str = option(
        "where experts would go whose rare, huge outputs the model rests on: refuse (default), or "
        "only warn",
        default="refuse",
        choices=("refuse", "warn"),
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(PruneOptions, parser)
    shared: dict[type[Any], list[str]] = {}
    for method in METHODS.values():
        if adds_options(method.options):
            shared.setdefault(method.options, []).append(method.name)
    for options, names in shared.items():
        add_options(options, parser.add_argument_group(f"--method {', '.join(names)}"))


def _method(request: Request) -> Method[Any]:
    if request.plan is None:
        if request.method is None:
            raise InputError("give --method and what it asks for, or --plan PLAN")
        method = METHODS[request.method]
        if request.variant is not None and not method.variants:
            raise InputError(f"--method {method.name} has no variants; leave --variant out")
        return method
    others = ("method", "variant", "keep", "ratio", "budget", "total_bytes", "spread")
    fitting = () if request.replace == NONE else ("data", "compute")
    for name in (*others, "scores", "data", "dump", "compute"):
        if getattr(request, name) is not None and name not in fitting:
            raise InputError(f"--plan says what is cut and {flag(name)} was given too; drop one")
    return planned.METHOD


def _own_options(args: argparse.Namespace, method: Method[Any]) -> Any:
    """The options of the method; those of others are refused, as they would be passed over."""
    mine = own_options(method.options)
    for other in METHODS.values():
        for name, default in own_options(other.options).items():
            if name not in mine and getattr(args, name) != default:
                able = ", ".join(m.name for m in METHODS.values() if name in own_options(m.options))
                raise InputError(f"{flag(name)} is an option of --method {able}; leave it out")
    return read_options(method.options, args)


def _open(request: Request, method: Method[Any], own: Any) -> tuple[Inputs, Chooser]:
    """Refuse whatever can be refused before any work."""
    model = open_model(request.model)
    check_no_stand_ins(model, "`leanmoe prune`")
    _check_method(request, method, model)
    _check_replace(request, method, model)
    _check_outputs(request)
    _check_inputs(request)
    data = None
    if request.data is not None:
        data = load_data(
            request.data, model, "calibration", window=request.window, seed=request.seed
        )
    bundle = None
    if request.scores is not None:
        bundle = ScoreBundle(request.scores)
        bundle.check_model(model, model.digests)
        bundle.check_shape(model)
    inputs = Inputs(model, model.digests, data, bundle, request.compute, request.seed)
    return inputs, method.open(request, own, inputs)


def _check_method(request: Request, method: Method[Any], model: OpenedModel) -> None:
    """Raise where the method does not do what is asked of it, naming those that do."""
    shared = request.adaptive or request.total_bytes is not None
    if shared and not method.shares_budget:
        able = ", ".join(one.name for one in METHODS.values() if one.shares_budget)
        raise InputError(
            f"--method {method.name} does not share a budget out among layers; leave --budget and "
            f"--total-bytes out, or use one of {able}"
        )
    if request.spread is not None:
        _check_spread(request, method)
    if model.layout.layers and not method.takes_mixed:
        able = ", ".join(one.name for one in METHODS.values() if one.takes_mixed)
        raise CheckpointError(
            f"{model.path} has layers that differ, and --method {method.name} takes models "
            f"whose layers are alike; take its source, cut it by --plan, or use one of {able}"
        )
    if request.plan_only and request.plan is not None:
        raise InputError("--plan is a plan already, which --plan-only would write; drop one")
    if request.plan_only and request.compress:
        raise InputError("--plan-only writes no checkpoint that --compress could pack; drop one")
    if request.plan_only and not method.plannable:
        raise InputError(
            f"--method {method.name} changes single weights, which no plan can say; leave "
            "--plan-only out"
        )


def _check_replace(request: Request, method: Method[Any], model: OpenedModel) -> None:
    """Raise where stand-ins are asked for that cannot be, or without text to fit them on."""
    asked = f"--replace {request.replace}"
    if Replacement.of(request.replace, model) is None:
        return
    if not method.selects:
        able = ", ".join(one.name for one in METHODS.values() if one.selects)
        raise InputError(
            f"--method {method.name} removes no single experts that {asked} could stand in for; "
            f"leave --replace out, or use one of {able}"
        )
    for other in ("plan_only", "compress"):
        if getattr(request, other):
            raise InputError(f"{asked} and {flag(other)} do not go together; drop one")
    if request.data is None:
        raise InputError(
            f"{asked} fits stand-ins on text, and score bundles hold none; give --data SPEC too"
        )
    check_runnable(model)


def _check_spread(request: Request, method: Method[Any]) -> None:
    if not method.spreads:
        able = ", ".join(one.name for one in METHODS.values() if one.spreads)
        raise InputError(
            f"--method {method.name} does not choose layers together; leave --spread out, or use "
            f"one of {able}"
        )
    if request.adaptive or request.total_bytes is not None:
        raise InputError(
            "--spread takes as many experts of every layer, and --budget adaptive and "
            "--total-bytes do not; drop one"
        )


def _check_outputs(request: Request) -> None:
    inputs = [path for path in (request.model, request.plan, request.scores) if path is not None]
    if request.plan_only:
        check_plan_target(request.out, request.force, inputs)
    else:
        check_output(request.out, request.force, inputs)
    if request.dump is not None:
        check_output(request.dump, request.force, [*inputs, request.out])


def _check_inputs(request: Request) -> None:
    both = request.data is not None and request.scores is not None
    if both and request.replace == NONE:
        raise InputError("--scores and --data were both given; the bundle holds its data, drop one")
    if request.compute is not None and request.scores is not None and request.replace == NONE:
        raise InputError(
            "--compute was given with --scores, whose statistics are computed already; drop one"
        )


def _run(args: argparse.Namespace) -> Result:
    request = read_options(PruneOptions, args)
    method = _method(request)
    return _pruned(request, method, _own_options(args, method))


def prune(request: PruneOptions, own: Any = None) -> Result:
    """Cut a model from Python: what ``leanmoe prune`` prints with ``--json``.

    ``own`` are the options that the method alone has, an object of its options' class
    (``METHODS[name].options``; default: as where none is given). Raises ``LeanMoEError`` where the
    command would refuse.
    """
    request = checked(request)
    method = _method(request)
    if own is not None and not isinstance(own, method.options):
        raise InputError(
            f"the options of {method.name} are {method.options.__name__}, "
            f"got {type(own).__name__}; make one of those"
        )
    return _pruned(request, method, checked(method.options() if own is None else own))


@torch.inference_mode()
def _pruned(request: PruneOptions, method: Method[Any], own: Any) -> Result:
    started = time.monotonic()
    inputs, chooser = _open(request, method, own)
    packer = _packer(request, inputs, chooser)
    with stop_on_signals():
        decision = chooser.decide(request.dump is not None)
        # Also of what is refused, or stopped, before the cutter takes them.
        with decision.replaced or nullcontext(), _resumable(decision.kept, request.out):
            result = _written(request, method, inputs, chooser, decision, packer)
    if request.plan_only:
        return result
    return {**result, "seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _resumable(kept: Path | None, out: Path) -> Iterator[None]:
    """Say, of a run that stops, what a method kept to go on from; it goes once all is written."""
    if kept is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupt_requested():
            raise KeyboardInterrupt(kept_in(kept)) from None
        if isinstance(error, InputError | OutputError):
            raise type(error)(f"{error}; {kept_in(kept)}") from error
        raise
    discard(kept, out)


def _written(
    request: PruneOptions,
    method: Method[Any],
    inputs: Inputs,
    chooser: Chooser,
    decision: Decision,
    packer: Packer | None,
) -> Result:
    """Write what was decided: a checkpoint, or its plan."""
    decision = probed(inputs, decision, refuse=request.super_experts == "refuse")
    decision = _noted(request, inputs, decision)
    _say(decision.notes)
    if request.plan_only:
        return _plan(request, method, inputs, chooser, decision)
    replacement = Replacement.of(request.replace, inputs.checkpoint)
    if replacement is not None:
        told = len(decision.notes)
        decision = _with_stand_ins(request, inputs, decision, replacement)
        _say(decision.notes[told:])
    with decision.replaced or nullcontext():
        cutter = Cutter(
            inputs.checkpoint,
            decision.layers,
            decision.replaced,
            decision.input_orders,
            packer,
            None if replacement is None else replacement.rank,
        )
        _say(cutter.size_notes)
        decision = replace(decision, notes=(*decision.notes, *cutter.size_notes))
        with progress("checking shards", cutter.n_read) as tick:
            cutter.validate(tick)
        with _dumped(request, decision) as dump:
            manifest = _write(request, method, inputs, chooser, decision, cutter, dump)
    return _result(request, cutter, manifest)


def _with_stand_ins(
    request: PruneOptions, inputs: Inputs, decision: Decision, replacement: Replacement
) -> Decision:
    """The decision with the tensors that stand in for what it removes."""
    gone = removed_experts(decision.layers, inputs.checkpoint)
    data, stream = inputs.need_data("--replace fits stand-ins on text"), inputs.stream()
    spool = WeightSpool.beside(request.out)
    try:
        with progress("fitting stand-ins", max(gone) + 1) as tick:
            idle = fit_stand_ins(stream, data.ids, gone, replacement.rank, spool, tick)
    except BaseException:
        spool.remove()
        raise
    record = {"how": str(replacement), "data": data.spec, "data_digest": data.digest()}
    notes = unreached_notes(idle, "have zeros in their place")
    return replace(
        decision,
        replaced=spool,
        notes=(*decision.notes, *notes),
        record={**decision.record, "replace": record},
    )


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        _LOG.warning("%s", note)


def _packer(request: PruneOptions, inputs: Inputs, chooser: Chooser) -> Packer | None:
    """What packs the experts; raise where nothing says that weights of theirs are zero."""
    if not request.compress:
        return None
    model, pattern = inputs.checkpoint, pattern_of(chooser.settings())
    known = pattern or told_pattern(model) or model.packing
    if known is None and is_separable(model):
        raise InputError(
            f"--compress stores experts without weights that were zeroed, and nothing says that "
            f"any of {model.path} were; leave it out, or zero weights too (--method moe-pruner)"
        )
    return packer_of(model, pattern)


def _noted(request: PruneOptions, inputs: Inputs, decision: Decision) -> Decision:
    """The decision with what to say of how it is written."""
    dense = not (request.compress or request.plan_only)
    note = unpacked_note(inputs.checkpoint, request.out) if dense else None
    return decision if note is None else replace(decision, notes=(*decision.notes, note))


def _plan(
    request: Request,
    method: Method[Any],
    inputs: Inputs,
    chooser: Chooser,
    decision: Decision,
) -> Result:
    settings, calibration = chooser.settings(), None
    if method.reads_data:
        settings, calibration = {**settings, "compute": inputs.computed_in}, inputs.calibration
    note = plan_note(inputs.checkpoint.path.resolve().name, method.name, settings, calibration)
    with _dumped(request, decision) as dump, dump:
        write_plan(request.out, decision.layers, note)
    return {
        "plan": str(request.out),
        "method": method.name,
        "note": note,
        "notes": list(decision.notes),
        "experts": {str(layer): plan.n_experts for layer, plan in decision.layers.items()},
    }


def _settings(
    method: Method[Any], inputs: Inputs, chooser: Chooser, decision: Decision
) -> dict[str, Any]:
    settings = {**chooser.settings(), **decision.record}
    if method.reads_data:
        settings["compute"] = inputs.computed_in
    if decision.notes:
        settings["notes"] = list(decision.notes)
    return settings


@contextmanager
def _dumped(request: Request, decision: Decision) -> Iterator[AbstractContextManager[None]]:
    """Write the dump; what is yielded puts it in place, before what it belongs to or not at all."""
    if request.dump is None:
        yield nullcontext()
        return
    with unplaced_directory(request.dump, request.force) as directory:
        write_tensors(directory / "results.safetensors", decision.tensors)
        atomic_write_json(directory / "results.json", decision.facts)
        yield placed(directory, request.dump, request.force)


def _write(
    request: Request,
    method: Method[Any],
    inputs: Inputs,
    chooser: Chooser,
    decision: Decision,
    cutter: Cutter,
    dump: AbstractContextManager[None],
) -> Manifest:
    settings = _settings(method, inputs, chooser, decision)
    with atomic_directory(request.out, request.force, first=dump) as directory:
        with progress("writing", cutter.n_written) as tick:
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


def _result(request: Request, cutter: Cutter, manifest: Manifest) -> Result:
    reader = cutter.reader
    return {
        "out": str(request.out),
        "method": manifest.method,
        "keep": request.keep,
        "notes": manifest.settings.get("notes", []),
        "zeros": manifest.settings.get("zeros"),
        "experts": {str(layer): own.n_computed for layer, own in cutter.layouts.items()},
        "condensed": [layer for layer, own in cutter.layouts.items() if own.condensed],
        "replace": request.replace,
        "loads_in_stock_vllm": cutter.loads_in_stock,
        "n_routed_experts": cutter.checkpoint.shape.n_routed_experts,
        "kept": {str(layer): kept for layer, kept in manifest.kept.items()},
        "weight_bytes": cutter.weight_bytes,
        "source_weight_bytes": reader.weight_bytes,
        "manifest_digest": manifest.digest(),
    }


def _show(result: Result) -> str:
    if "plan" in result:
        return f"wrote what {result['method']} decided to {result['plan']}: cut it with --plan"
    share = result["weight_bytes"] / result["source_weight_bytes"]
    held = sorted(set(result["experts"].values()))
    counts = str(held[0]) if len(held) == 1 else f"{held[0]} to {held[-1]}"
    where = "any engine" if result["loads_in_stock_vllm"] else "`leanmoe serve` only"
    if result["replace"] == CONSTANT:
        where = "`leanmoe serve`, and as stated by vLLM 0.33 there"
    zeros = result["zeros"]
    mean = sum(zeros.values()) / len(zeros) if zeros else 0.0
    zeroed = f"zeroed {show_share(mean)} of expert weights, " if zeros else ""
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
