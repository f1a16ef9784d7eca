"""``leanmoe eval``: perplexity per domain, and the distance from another model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanmoe.command import Result
from leanmoe.errors import CheckpointError, InputError
from leanmoe.policy import check_level
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_pruning.checkpoints.opening import OpenedModel, open_runnable_model
from leanmoe_pruning.data import DataSet, load_data
from leanmoe_pruning.data.tasks.loading import HELP
from leanmoe_pruning.data.tasks.open_prompts import HELP as PROMPTS_HELP
from leanmoe_pruning.data.tasks.open_prompts import load_prompts
from leanmoe_pruning.evaluation.domain_groups import group_reports
from leanmoe_pruning.evaluation.eval_tables import show
from leanmoe_pruning.evaluation.judging import BACKENDS, Judge, judge_model, make_judge
from leanmoe_pruning.evaluation.levels import LevelPass
from leanmoe_pruning.evaluation.long_answers import LongQuestions
from leanmoe_pruning.evaluation.own_answers import own_answers
from leanmoe_pruning.evaluation.perplexity import Against, domain_report, domain_sums, forward
from leanmoe_pruning.evaluation.remembered import Remembered
from leanmoe_pruning.evaluation.task_result import TaskResult, task_report
from leanmoe_pruning.forward.skipping import EXACT, Skipping
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.options import (
    argument,
    command_of,
    compute_option,
    data_option,
    flag,
    option,
    window_option,
)
from leanmoe_pruning.progress import progress
from leanmoe_pruning.served.chat_server import is_url
from leanmoe_pruning.served.judgement import Asked, judge_served


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What ``leanmoe eval`` takes."""

    model: str | Path = argument("checkpoint directory, or URL of a server", metavar="MODEL")
    data: str | None = data_option(required=False)
    window: int = window_option()
    tasks: str | None = option(HELP, metavar="TASKS")
    backend: str = option(
        "who judges tasks: our own scorer (default), or lm-evaluation-harness around our "
        "forward pass, which also knows tasks by name",
        default="own",
        choices=BACKENDS,
    )
    include_path: Path | None = option("folder of lm-eval task files (YAML)", metavar="DIR")
    against: str | Path | None = option(
        "also give KL(MODEL2 || MODEL), top-1 agreement and paired differences on tasks; beside "
        "a server another one, or what eval wrote of one with --json",
        metavar="MODEL2",
    )
    remember: Path | None = option(
        "keep what MODEL2 said in DIR, so that the next eval against it on the same texts and "
        "tasks does not run it again",
        metavar="DIR",
    )
    long: int | None = option(
        "also have prompts answered with up to N tokens: how long answers are, whether they end by "
        "themselves, how much they repeat",
        metavar="N",
        within=(2, 1_000_000),
    )
    prompts: str = option(PROMPTS_HELP, default="builtin", metavar="SPEC")
    temperature: float = option(
        "of the long answers (default 0: the likeliest token)", default=0.0, metavar="T"
    )
    skip_level: float | None = option(
        "skip level of MODEL (default: 0, or the server's own)", metavar="L"
    )
    max_kld: float | None = option(
        "instead, the highest level whose measured KLD bound stays under this", metavar="NATS"
    )
    compute: str | None = compute_option()
    seed: int = 0


def _check_levels(options: EvalOptions) -> None:
    if options.skip_level is not None and options.max_kld is not None:
        raise InputError("--skip-level and --max-kld both name the level; give one of them")
    if options.skip_level is not None:
        check_level(options.skip_level, "--skip-level")


def _served(options: EvalOptions) -> Result:
    """A server's answers to tasks; what its weights say of texts is not seen from here."""
    for name in ("data", "compute", "remember"):
        if getattr(options, name) is not None:
            raise InputError(
                f"{flag(name)} is for a checkpoint, and {options.model} is a server, which is "
                "judged by --tasks and --long; drop it, or download the model and give its folder"
            )
    if options.tasks is None and options.long is None:
        raise InputError("nothing to judge a server by: give --tasks TASKS, --long N or both")
    return judge_served(
        Asked(
            url=str(options.model),
            against=options.against,
            tasks=options.tasks,
            include_path=options.include_path,
            skip_level=options.skip_level,
            max_kld=options.max_kld,
            long=_questions(options),
        )
    )


def _questions(options: EvalOptions) -> LongQuestions | None:
    """What is to be answered at length."""
    if not (math.isfinite(options.temperature) and options.temperature >= 0.0):
        raise InputError(f"--temperature is {options.temperature}, expected a number from 0")
    if options.long is None:
        return None
    prompts = load_prompts(options.prompts)
    return LongQuestions(prompts, options.long, options.temperature, options.seed)


def _level(options: EvalOptions, checkpoint: OpenedModel) -> float:
    """The level of a checkpoint."""
    if options.max_kld is None:
        return options.skip_level or 0.0
    if checkpoint.manifest is None or checkpoint.manifest.curve is None:
        raise InputError(
            f"--max-kld needs a quality curve and {checkpoint.path} has none: run `leanmoe curve "
            "MODEL --data SPEC` first, or give --skip-level"
        )
    return checkpoint.manifest.curve.level_for_max_kld(options.max_kld)


def _skipping(checkpoint: OpenedModel, level: float) -> Skipping:
    curve = checkpoint.manifest.curve if checkpoint.manifest else None
    return Skipping.at(level, checkpoint.layers, curve)


@dataclass(frozen=True)
class _Run:
    """A checked run: a checkpoint at its level, what it is compared with, and what judges both."""

    options: EvalOptions
    checkpoint: OpenedModel
    level: float
    skipping: Skipping
    other: OpenedModel | None
    memory: Remembered
    data: DataSet | None
    judge: Judge | None
    questions: LongQuestions | None


@torch.inference_mode()
def _run(options: EvalOptions) -> Result:
    started = time.monotonic()
    _check_levels(options)
    if is_url(options.model):
        with stop_on_signals():
            return _served(options)
    run = _open(options)
    with stop_on_signals():
        judged = _judge(run)
    manifest = run.checkpoint.manifest
    return {
        "model": str(options.model),
        "manifest_digest": manifest.digest() if manifest else None,
        "weights_digest": run.checkpoint.digest,
        "against": None if options.against is None else str(options.against),
        "against_weights_digest": run.other.digest if run.other else None,
        "skip_level": run.level,
        **judged,
        "seconds": round(time.monotonic() - started, 1),
    }


def _open(options: EvalOptions) -> _Run:
    """Refuse whatever can be refused before any work."""
    checkpoint = open_runnable_model(Path(options.model))
    other = _open_other(options.against, checkpoint) if options.against is not None else None
    if options.remember is not None and other is None:
        raise InputError("--remember keeps what the model of --against said; give --against too")
    questions = _questions(options)
    if options.data is None and options.tasks is None and questions is None:
        raise InputError("nothing to judge by: give --data SPEC, --tasks TASKS or --long N")
    data = _data(options, checkpoint)
    judge = None
    if options.tasks is not None:
        judge = make_judge(options.tasks, options.backend, options.include_path)
    level = _level(options, checkpoint)
    skipping = _skipping(checkpoint, level)
    memory = Remembered(options.remember, other.digest if other else "", options.compute)
    return _Run(options, checkpoint, level, skipping, other, memory, data, judge, questions)


def _open_other(place: str | Path, checkpoint: OpenedModel) -> OpenedModel:
    path = Path(place)
    if is_url(place) or path.is_file():
        raise InputError(
            f"--against {place} is no checkpoint and {checkpoint.path} is one; compare a server "
            "with a server, or with what eval wrote of one"
        )
    other = open_runnable_model(path)
    mine, theirs = checkpoint.config["vocab_size"], other.config["vocab_size"]
    if mine != theirs:
        raise CheckpointError(
            f"{path} has a vocabulary of {theirs} and {checkpoint.path} one of {mine}; "
            "only models of one vocabulary can be compared"
        )
    return other


def _data(options: EvalOptions, checkpoint: OpenedModel) -> DataSet | None:
    if options.data is None:
        return None
    return load_data(options.data, checkpoint, "heldout", window=options.window, seed=options.seed)


def _judge(run: _Run) -> Result:
    """By all that was asked for."""
    found: Result = {}
    if run.data is not None:
        found |= _judge_texts(run, run.data)
    if run.judge is not None:
        found |= _judge_tasks(run, run.judge)
    if run.questions is not None:
        found |= _judge_long(run, run.questions)
    return found


def _judge_texts(run: _Run, data: DataSet) -> Result:
    own = _pass(run.checkpoint, data, run.skipping, run.options.compute)
    against = _against(run, run.other, data) if run.other else None
    with progress("windows", data.windows) as tick:
        sums = domain_sums(own, against, data, tick)
    domains = {name: domain_report(found, theirs) for name, (found, theirs) in sums.items()}
    return {"skip_rate": own.skip_rate(0), "domains": domains, "groups": group_reports(domains)}


def _against(run: _Run, other: OpenedModel, data: DataSet) -> Against:
    compute = run.options.compute
    hidden = run.memory.hidden(
        data.digest(), lambda: _pass(other, data, _skipping(other, 0.0), compute).hidden
    )
    return Against(DecoderStream(other, compute), hidden)


def _pass(
    checkpoint: OpenedModel, data: DataSet, skipping: Skipping, compute: str | None
) -> LevelPass:
    stream = DecoderStream(checkpoint, compute)
    with progress(f"{checkpoint.path.name}: layers", stream.n_layers) as tick:
        return forward(stream, data, skipping, tick)


def _judge_tasks(run: _Run, judge: Judge) -> Result:
    other, compute = run.other, run.options.compute
    mine = judge_model(judge, run.checkpoint, run.skipping, compute)
    theirs: Sequence[TaskResult | None] = [None] * len(mine)
    if other is not None:
        theirs = run.memory.tasks(judge.digest(), lambda: judge_model(judge, other, EXACT, compute))
    return {
        "backend": run.options.backend,
        "tasks": {one.task: task_report(one, two) for one, two in zip(mine, theirs, strict=True)},
    }


def _judge_long(run: _Run, questions: LongQuestions) -> Result:
    other, compute = run.other, run.options.compute
    mine, theirs = own_answers(questions, run.checkpoint, run.skipping, compute), None
    if other is not None:
        theirs = own_answers(questions, other, EXACT, compute)
    return questions.report(mine, theirs)


COMMAND = command_of(
    EvalOptions,
    _run,
    name="eval",
    summary="Perplexity on held-out text and accuracy on tasks, alone or against another model.",
    example="leanmoe eval ./lean --against ./reference --data builtin:gen:8,builtin:py:8 "
    "--tasks builtin:arith,mine.jsonl",
    show=show,
)
