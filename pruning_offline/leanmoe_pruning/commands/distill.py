"""``leanmoe distill``: train a pruned model towards the model it was pruned from."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leanmoe.command import Result
from leanmoe.errors import InputError, OutputError
from leanmoe.files.output import atomic_directory, check_output
from leanmoe.manifest import Manifest, write_manifest
from leanmoe.process.interrupts import interrupt_requested, stop_on_signals
from leanmoe_pruning.checkpoints.opening import (
    OpenedModel,
    check_no_stand_ins,
    open_runnable_model,
    unpacked_note,
)
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.record import cut_manifest
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.distillation.filters import FILTERS, ROUTERS
from leanmoe_pruning.distillation.lineage import Ancestors, check_pair, find_ancestors
from leanmoe_pruning.distillation.local import LayerCourse, distill_layers
from leanmoe_pruning.distillation.settings import Settings
from leanmoe_pruning.distillation.state import StateFolder
from leanmoe_pruning.distillation.student import StudentStream
from leanmoe_pruning.distillation.whole import Progress, StepLoss, WholeModel, batches
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.unreached import unreached_notes
from leanmoe_pruning.methods.weights.layer_weights import check_changeable, check_plain
from leanmoe_pruning.options import (
    command_of,
    compute_option,
    data_option,
    force_option,
    model_argument,
    option,
    out_option,
    window_option,
)
from leanmoe_pruning.progress import progress

_LOG = logging.getLogger(__name__)

DEFAULT_STEPS, DEFAULT_BATCH = 100, 4
# The paper's for the whole model; a share of the weights' size for a layer alone.
DEFAULT_LR, DEFAULT_SHARE = 2e-5, 0.02
_CURVE_POINTS = 50
_MOST = 10_000_000  # updates, and windows in one


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """What ``leanmoe distill`` takes."""

    model: Path = model_argument()
    teacher: Path | None = option(
        "the model that MODEL was pruned from; without it the text alone teaches",
        metavar="TEACHER",
    )
    data: str = data_option()
    window: int = window_option()
    local: bool = option(
        "train each layer's experts on the teacher's inputs, one layer in memory at a time",
        default=False,
    )
    train: str = option(
        "routed experts (default), routers alone (towards the teacher's next tokens), what "
        "condensed layers run, or every linear layer",
        default="experts",
        choices=tuple(FILTERS),
    )
    steps: int = option(
        f"updates; with --local of each layer (default {DEFAULT_STEPS})",
        default=DEFAULT_STEPS,
        metavar="N",
        within=(1, _MOST),
    )
    batch: int = option(
        f"windows per update; with --local as many tokens (default {DEFAULT_BATCH})",
        default=DEFAULT_BATCH,
        metavar="WINDOWS",
        within=(1, _MOST),
    )
    lr: float | None = option(
        f"learning rate at the start (default {DEFAULT_LR}; with --local or --train routers "
        f"{DEFAULT_SHARE} times the root mean square of each layer's trained weights)",
        metavar="RATE",
    )
    weight_decay: float = option("AdamW's (default 0)", default=0.0, metavar="RATE")
    checkpoint_every: int | None = option(
        "keep the state in OUT.training every N updates, with --local every layer", metavar="N"
    )
    resume: bool = option("go on from OUT.training", default=False)
    compute: str | None = compute_option()
    out: Path = out_option("trained checkpoint directory to write")
    force: bool = force_option()
    seed: int = 0


@dataclass(frozen=True)
class _Run:
    """A checked run."""

    student: StudentStream
    teacher: OpenedModel | None
    ancestors: Ancestors
    data: DataSet
    settings: Settings
    compute: str | None
    every: int | None
    state: StateFolder | None
    source: dict[str, str]
    teacher_files: dict[str, str]

    def teacher_stream(self) -> DecoderStream | None:
        return DecoderStream(self.teacher, self.compute) if self.teacher else None


def _settings(options: DistillOptions) -> Settings:
    relative = options.lr is None and (options.local or options.train == ROUTERS)
    default = DEFAULT_SHARE if relative else DEFAULT_LR
    rate = default if options.lr is None else options.lr
    if not 0 < rate < 1:
        raise InputError(f"--lr is {rate}, expected a rate above 0 and below 1")
    if not 0 <= options.weight_decay < 1:
        raise InputError(f"--weight-decay is {options.weight_decay}, expected 0 to below 1")
    if options.checkpoint_every is not None and options.checkpoint_every < 1:
        raise InputError(f"--checkpoint-every is {options.checkpoint_every}, expected at least 1")
    _check_taught(options)
    return Settings(
        options.steps,
        rate,
        relative,
        options.batch,
        options.weight_decay,
        options.train,
        options.local,
        options.seed,
    )


def _check_taught(options: DistillOptions) -> None:
    """Raise where what is to be trained lacks the teacher that it learns from."""
    if options.local and (options.teacher is None or options.train != "experts"):
        raise InputError(
            "--local teaches routed experts what a teacher's say; give --teacher and leave --train "
            "out, or drop --local"
        )
    if options.train == ROUTERS and options.teacher is None:
        raise InputError(
            "--train routers learns the teacher's next-token distributions; give --teacher, the "
            "model that MODEL was pruned from"
        )


def _open(options: DistillOptions) -> _Run:
    """Refuse whatever can be refused before any work."""
    settings = _settings(options)
    checkpoint, teacher = _models(options, settings)
    data = load_data(
        options.data,
        checkpoint,
        "calibration",
        window=options.window,
        seed=options.seed,
        author=teacher,
    )
    student = StudentStream(checkpoint, options.compute, FILTERS[options.train])
    _check_trained(student, options)
    source, teacher_files = checkpoint.digests, teacher.digests if teacher else {}
    ancestors = _ancestors(settings, checkpoint, teacher, teacher_files)
    run = _Run(
        student=student,
        teacher=teacher,
        ancestors=ancestors,
        data=data,
        settings=settings,
        compute=options.compute,
        every=options.checkpoint_every,
        state=None,
        source=source,
        teacher_files=teacher_files,
    )
    return replace(run, state=_state(options, run))


def _models(options: DistillOptions, settings: Settings) -> tuple[OpenedModel, OpenedModel | None]:
    """The one to train, and the teacher."""
    inputs = [path for path in (options.model, options.teacher) if path is not None]
    check_output(options.out, options.force, inputs)
    checkpoint = open_runnable_model(options.model)
    check_no_stand_ins(checkpoint, "`leanmoe distill`")
    if not settings.routers_alone:
        check_changeable(checkpoint)
    teacher = None if options.teacher is None else open_runnable_model(options.teacher)
    return checkpoint, teacher


def _state(options: DistillOptions, run: _Run) -> StateFolder | None:
    """Where ``run`` is taken up from if it is stopped; none where that was not asked for."""
    if options.checkpoint_every is None and not options.resume:
        return None
    followed = {
        "model": run.source,
        "teacher": run.teacher_files,
        "data": run.data.digest(),
        "compute": str(run.student.compute),
        **asdict(run.settings),
    }
    return StateFolder(options.out, followed, options.resume)


def _check_trained(student: StudentStream, options: DistillOptions) -> None:
    """Raise unless something is to be trained, all of it in numbers that can be."""
    trained = [name for layer in range(student.n_layers) for name in student.trained(layer)]
    if not trained:
        raise InputError(
            f"--train {options.train} finds nothing to train in {options.model}; give another"
        )
    check_plain(student.reader, trained, f"`leanmoe distill --train {options.train}`")


def _ancestors(
    settings: Settings, model: OpenedModel, teacher: OpenedModel | None, files: dict[str, str]
) -> Ancestors:
    """Whose outputs experts learn; routers learn nothing of single experts."""
    if teacher is None:
        return {}
    if settings.routers_alone:
        check_pair(model, teacher)
        return {}
    return find_ancestors(model, teacher, files)


def _run(options: DistillOptions) -> Result:
    started = time.monotonic()
    run = _open(options)
    with stop_on_signals(), _resumable(run), _spool(options.out, run) as spool:
        found = _train_local(run, spool) if run.settings.local else _train_whole(run, spool)
        if notes := _notes(run, options.out, found.pop("notes", ())):
            found["notes"] = notes
        manifest = _write(run, options, found, spool)
        if run.state is not None:
            run.state.remove()
    for note in found.get("notes", []):
        _LOG.warning("%s", note)
    return {
        "out": str(options.out),
        "tokens": run.data.tokens,
        "loss_before": found["loss_before"],
        "loss_after": found["loss_after"],
        "notes": found.get("notes", []),
        "manifest_digest": manifest.digest(),
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _resumable(run: _Run) -> Iterator[None]:
    """Say, of a run that is stopped or cannot write, how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, OutputError) as error:
        if run.state is None or not run.state.is_kept:
            if run.state is not None:
                run.state.remove_if_stillborn()
            raise
        kept = (
            f"what was trained is kept in {run.state.directory}: run the same command again with "
            "--resume to go on from there, or remove that folder"
        )
        if isinstance(error, KeyboardInterrupt) or interrupt_requested():
            raise KeyboardInterrupt(kept) from None
        raise OutputError(f"{error}; {kept}") from error


@contextmanager
def _spool(out: Path, run: _Run) -> Iterator[WeightSpool]:
    """Layers finished by ``--local`` outlive an interrupt where a state is kept."""
    if run.state is not None and run.settings.local:
        yield run.state.spool()
        return
    with WeightSpool.beside(out) as spool:
        yield spool


def _write(
    run: _Run, options: DistillOptions, found: dict[str, Any], spool: WeightSpool
) -> Manifest:
    cutter = Cutter(run.student.checkpoint, {}, spool)
    with atomic_directory(options.out, options.force) as directory:
        with progress("writing", cutter.n_written) as tick:
            files = cutter.write(directory, tick)
        manifest = cut_manifest(
            run.student.checkpoint,
            run.source,
            "distill",
            {**_recorded(run), **found},
            {},
            (run.data.spec, run.data.digest()),
            files,
        )
        write_manifest(directory, manifest)
    return manifest


def _recorded(run: _Run) -> dict[str, Any]:
    name = run.teacher.path.resolve().name if run.teacher else None
    compute = str(run.student.compute).removeprefix("torch.")
    teacher = {"name": name, "files": run.teacher_files} if run.teacher else None
    return {"teacher": teacher, "compute": compute, **asdict(run.settings)}


def _train_local(run: _Run, spool: WeightSpool) -> dict[str, Any]:
    courses: dict[int, LayerCourse] = dict(run.state.state.layers) if run.state else {}
    teacher = run.teacher_stream()
    assert teacher is not None, "the settings were checked"
    with progress("distilling layers", run.student.n_layers) as tick:
        for found in distill_layers(
            teacher,
            run.student,
            run.data.ids,
            run.ancestors,
            run.settings,
            frozenset(courses),
            tick,
        ):
            spool.put(found.layer, found.tensors)
            courses[found.layer] = found.course
            if run.state is not None:
                run.state.add_layer(found.layer, found.course)
    by_layer = sorted(courses.items())
    return {
        "loss": "squared error over mean square of each expert's output, mean over experts",
        "loss_before": {str(layer): course.before for layer, course in by_layer},
        "loss_after": {str(layer): course.after for layer, course in by_layer},
        "loss_curve": {str(layer): _thinned(course.curve) for layer, course in by_layer},
        "notes": unreached_notes(
            {layer: course.unreached for layer, course in by_layer if course.unreached},
            "stay as they were",
            "teach",
        ),
    }


def _train_whole(run: _Run, spool: WeightSpool) -> dict[str, Any]:
    model = WholeModel(run.student, run.teacher_stream(), run.ancestors, run.settings)
    if run.state is not None:
        run.state.restore(model)
    steps, first = run.settings.steps, model.progress.step
    with progress("distilling", steps - first) as tick:
        feed = batches(run.data.ids, run.settings, first)
        for step, batch in zip(range(first + 1, steps + 1), feed, strict=False):
            model.advance(batch)
            if run.state is not None and run.every and step % run.every == 0 and step < steps:
                run.state.put_model(model)
            tick()
    for layer in model.trained:
        run.student.settle(layer)
    # Steps see different windows: only the first one's, seen again, say what training did.
    after = model.measure(next(batches(run.data.ids, run.settings, 0)))
    for layer in model.trained:
        spool.put(layer, run.student.stop(layer))
    if run.settings.routers_alone:
        return _router_course(model.progress, after)
    return _course(model.progress, after)


def _router_course(made: Progress, after: StepLoss) -> dict[str, Any]:
    divergences = [one.text for one in made.losses]
    return {
        "loss": "KL of the next token's distribution from the teacher's, nats, mean over tokens; "
        "before and after on the first step's windows",
        "loss_before": {"kl": divergences[0]},
        "loss_after": {"kl": after.text},
        "loss_curve": {"kl": _thinned(divergences)},
    }


def _course(made: Progress, after: StepLoss) -> dict[str, Any]:
    text, experts = [one.text for one in made.losses], [one.experts for one in made.losses]
    return {
        "loss": "next-token loss, and the sum of the experts' mean squared errors; before and "
        "after on the first step's windows",
        "expert_factor": made.factor,
        "loss_before": {"text": text[0], "experts": experts[0]},
        "loss_after": {"text": after.text, "experts": after.experts},
        "loss_curve": {"text": _thinned(text), "experts": _thinned(experts)},
    }


def _thinned(curve: list[float]) -> list[float]:
    """At most some fifty points of it, rounded: a manifest is read by people."""
    stride = -(-len(curve) // _CURVE_POINTS)
    return [float(f"{value:.6g}") for value in curve[::stride]]


def _notes(run: _Run, out: Path, found: Sequence[str]) -> list[str]:
    """What training found and what is to be said of the models."""
    dense = unpacked_note(run.student.checkpoint, out)
    return [*found, *(note for note in (_without_ancestors(run), dense) if note is not None)]


def _without_ancestors(run: _Run) -> str | None:
    left = [layer for layer, experts in sorted(run.ancestors.items()) if experts is None]
    if not left:
        return None
    named = ", ".join(map(str, left))
    return (
        f"the experts of layers {named} are no single experts of the teacher (condensed or "
        "merged), so nothing was taken over from the teacher's experts there"
    )


def _show(result: Result) -> str:
    def mean(losses: dict[str, float]) -> float:
        return sum(losses.values()) / len(losses)

    before, after = result["loss_before"], result["loss_after"]
    if "kl" in before:
        change = f"KL from the teacher {before['kl']:.4f} -> {after['kl']:.4f} nats a token"
    elif "text" in before:
        change = f"loss on text {before['text']:.3f} -> {after['text']:.3f}"
    else:
        change = f"relative squared error of experts {mean(before):.4f} -> {mean(after):.4f}"
    return (
        f"distilled on {result['tokens']} tokens in {result['seconds']} s: {change}; "
        f"{result['out']}"
    )


COMMAND = command_of(
    DistillOptions,
    _run,
    name="distill",
    summary="Train a pruned model towards the model it was pruned from; zeroed weights stay zero.",
    example=(
        "leanmoe distill ./sparse --teacher ./reference --local --data builtin:gen -o ./trained"
    ),
    show=_show,
)
